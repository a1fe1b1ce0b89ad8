"""Language models: they serve clients, chat, and choose among labels. Tasks that run at a time share one batch."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import torch

from dataflower import checkpoint
from dataflower.errors import InvalidArgument, NotFound, Unavailable
from dataflower.llm.chat import ChatStage
from dataflower.llm.errors import AdapterNotFound
from dataflower.llm.files import read_model
from dataflower.llm.model import build
from dataflower.llm.params import SamplingParams
from dataflower.llm.runner import Runner
from dataflower.llm.scheduler import Limits
from dataflower.spec.context import Context
from dataflower.spec.function import Json, Stream, Text, function
from functions import assets


def start(
    model: str, dtype: str, packed: bool = True, limits: Limits | None = None, device: str = "cpu"
) -> tuple[Runner, Any]:
    """A running model and its tokenizer; `model`: `smollm2`, a folder, or a name that `dataflower models ls` knows.

    InvalidArgument if `dtype` is none to compute in; otherwise see `checkpoint.open` (of a device, with its name).
    """
    kind = getattr(torch, dtype, None)
    if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise InvalidArgument(
            f"dtype is {dtype!r}; it must be bfloat16, float32 or another floating point type of torch"
        )
    path = assets.find(assets.SMOLLM2) if model == "smollm2" else model
    try:
        weights = checkpoint.open(path, packed=dtype if packed else "", device=device)
    except (NotFound, Unavailable) as error:
        if device == "cpu":
            raise
        raise type(error)(
            f"model {str(path)!r} with device {device!r} in the stage's params: {error.message}"
        ) from None
    with weights:
        files = read_model(weights.config_dir)
        net = build(
            files.config,
            weights.tensors(),
            dtype=kind,
            device=torch.device(weights.torch_device),
            packed=packed and weights.may_copy,
            metadata=weights.metadata,
        )
    names = {"tokenizer": files.tokenizer, "ends": files.ends, "identity": weights.digest}
    runner = Runner(net, **names, limits=limits).start()
    runner.warm_up()
    return runner, files.tokenizer


def find_adapter(name: str) -> str:
    """Its folder. Raises AdapterNotFound."""
    try:
        return assets.find_adapter(name)
    except FileNotFoundError as error:
        raise AdapterNotFound(str(error)) from None


@function(outputs={"deltas": Stream(Json())})
class Complete:
    """Continues a chat or a text as a request in the names of the OpenAI API says (docs/llm.md, "The chat stage").

    `adapters`: name -> folder of each LoRA adapter that requests may ask for. `adapter`: of requests that ask for none.
    `packed`: compute with weights in the processor's own layout, which is faster; all containers of the host share them
    either way. `max_queued_tokens`: refuse requests above so many tokens of prompts that wait. `ttft_ms`: refuse who
    would get the first token later because of those before. `tpot_ms`: let requests wait with which further tokens of
    all answers would take longer on the average. `max_sequences`: answers that are written at a time, at most.
    `step_tokens`: tokens that a step computes at most, and so the size of the pieces of long prompts. `device`: `cpu`,
    or `cuda:0`, where all containers share one copy of the weights, too (with `resources: {gpu: 1}`).
    """

    def setup(  # noqa: PLR0917 - named in YAML
        self,
        model: str = "smollm2",
        adapters: Mapping[str, str] | None = None,
        max_tokens: int = 512,
        temperature: float = 1.0,
        dtype: str = "bfloat16",
        packed: bool = True,
        adapter: str = "",
        max_queued_tokens: int | None = None,
        ttft_ms: float | None = None,
        max_sequences: int = 16,
        step_tokens: int = 512,
        device: str = "cpu",
        tpot_ms: float | None = None,
    ) -> None:
        limits = Limits(
            sequences=max_sequences,
            step_tokens=step_tokens,
            waiting_tokens=max_queued_tokens,
            ttft_s=None if ttft_ms is None else ttft_ms / 1000,
            tpot_s=None if tpot_ms is None else tpot_ms / 1000,
        )
        self.runner, tokenizer = start(model, dtype, packed, limits, device)
        for name, folder in {**(adapters or {}), **({adapter: adapter} if adapter else {})}.items():
            self.runner.adapters.load(name, find_adapter(folder))
        self.stage = ChatStage(
            self.runner, tokenizer, max_tokens=max_tokens, temperature=temperature, adapter=adapter or None
        )

    async def __call__(
        self, request: Mapping[str, Any], context: Context | None = None
    ) -> AsyncIterator[Mapping[str, Any]]:
        own = context.adapter if context is not None else None  # set where stages share this container
        if own is not None and own.path:
            own = replace(own, path=find_adapter(own.path))
        async with aclosing(self.stage.answer(request, own)) as deltas:  # whoever leaves ends the generation at once
            async for delta in deltas:
                yield delta

    def trim(self) -> None:
        self.runner.trim()

    def close(self) -> None:
        self.runner.close()


@function(outputs={"text": Stream(Text())})
class Continue:
    """Continues a text that is still being written: each piece is computed as it comes, the answer begins at once."""

    def setup(  # noqa: PLR0917 - named in YAML
        self,
        model: str = "smollm2",
        max_new_tokens: int = 96,
        dtype: str = "bfloat16",
        max_sequences: int = 16,
        step_tokens: int = 512,
        device: str = "cpu",
        tpot_ms: float | None = None,
    ) -> None:
        tpot_s = None if tpot_ms is None else tpot_ms / 1000
        limits = Limits(sequences=max_sequences, step_tokens=step_tokens, tpot_s=tpot_s)
        self.runner, self.tokenizer = start(model, dtype, limits=limits, device=device)
        self.params = SamplingParams(max_tokens=max_new_tokens)

    async def __call__(self, pieces: Stream[str]) -> AsyncIterator[str]:
        tokens = (self.tokenizer(piece)["input_ids"] async for piece in pieces)
        with self.runner.generate(tokens, self.params) as outputs:
            async for output in outputs:
                if output.text:
                    yield output.text

    def trim(self) -> None:
        self.runner.trim()

    def close(self) -> None:
        self.runner.close()


@function(outputs={"text": Stream(Text()), "reply": Text()})
class Chat:
    """Answers a prompt: `text` piece by piece as it is written, `reply` as a whole at the end.

    `examples`: earlier prompts with their answers.
    """

    def setup(  # noqa: PLR0917 - named in YAML
        self,
        model: str = "smollm2",
        system: str = "",
        examples: Sequence[Sequence[str]] = (),
        max_new_tokens: int = 96,
        dtype: str = "bfloat16",
        max_sequences: int = 16,
        step_tokens: int = 512,
        device: str = "cpu",
        tpot_ms: float | None = None,
    ) -> None:
        tpot_s = None if tpot_ms is None else tpot_ms / 1000
        limits = Limits(sequences=max_sequences, step_tokens=step_tokens, tpot_s=tpot_s)
        self.runner, self.tokenizer = start(model, dtype, limits=limits, device=device)
        self.before = [{"role": "system", "content": system}] if system else []
        for asked, answered in examples:
            self.before += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        self.params = SamplingParams(max_tokens=max_new_tokens)

    def __call__(self, prompt: str) -> Generator[Mapping[str, str], None, Mapping[str, str]]:
        messages = [*self.before, {"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        reply = ""
        with self.runner.stream(self.tokenizer(text, add_special_tokens=False)["input_ids"], self.params) as outputs:
            for output in outputs:
                if output.text:
                    yield {"text": output.text}
                    reply += output.text
        return {"reply": reply}

    def trim(self) -> None:
        self.runner.trim()

    def close(self) -> None:
        self.runner.close()


@function(outputs={"label": Text(), "scores": Json()})
class Choose:
    """The label that the model finds likeliest as its answer, and the probability of each.

    `examples`: pairs of message and label that show the task. What they favour by themselves is divided out
    (contextual calibration).
    """

    def setup(  # noqa: PLR0917 - named in YAML
        self,
        labels: Sequence[str],
        instruction: str,
        examples: Sequence[Sequence[str]] = (),
        model: str = "smollm2",
        dtype: str = "bfloat16",
        device: str = "cpu",
    ) -> None:
        self.runner, self.tokenizer = start(model, dtype, device=device)
        self.labels = list(labels)
        shown = "".join(f"Message: {message}\nLabel: {label}\n\n" for message, label in examples)
        self.prefix = f"{instruction}\n\n{shown}Message: "
        self.bias = self.likelihoods("N/A")  # what the examples alone make likely, whatever the message

    def __call__(self, message: str) -> Mapping[str, Any]:
        likely = [p / q for p, q in zip(self.likelihoods(message), self.bias, strict=True)]
        scores = {label: round(p / sum(likely), 4) for label, p in zip(self.labels, likely, strict=True)}
        return {"label": max(scores, key=lambda label: scores[label]), "scores": scores}

    def likelihoods(self, message: str) -> list[float]:
        """Of each label, after the message; they are computed in one batch."""
        prompt = self.tokenizer(f"{self.prefix}{message}\nLabel:")["input_ids"]
        params = SamplingParams(max_tokens=0, score_from=len(prompt))
        answers = [self.tokenizer(f" {label}\n")["input_ids"] for label in self.labels]
        streams = [self.runner.stream(prompt + answer, params) for answer in answers]
        return [math.exp(sum(score.logprob for output in stream for score in output.scores)) for stream in streams]

    def trim(self) -> None:
        self.runner.trim()

    def close(self) -> None:
        self.runner.close()
