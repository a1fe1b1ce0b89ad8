"""A small language model: SmolLM2-135M-Instruct serves clients, chats, and chooses among labels."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging

from dataflower.llm import request as requests
from dataflower.spec.function import Json, Stream, Text, function
from functions import assets

UNFINISHED = "\ufffd"
"""What a tokenizer gives for a character of which only some bytes are there."""


class Model:
    """Tokenizer and weights, from a folder or a packaged model's name."""

    def __init__(self, name: str, dtype: str = "bfloat16") -> None:
        logging.disable_progress_bar()
        folder = assets.find(assets.SMOLLM2) if name == "smollm2" else name
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.net = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def chat_ids(self, prompt: str, system: str = "", examples: Sequence[Sequence[str]] = ()) -> list[int]:
        """Tokens of a chat up to where the answer begins; `examples` are earlier prompts with their answers."""
        messages = [{"role": "system", "content": system}] if system else []
        for asked, answered in examples:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": prompt})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def greedy(self, ids: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """The likeliest next token, again and again, until the end-of-sequence token (which is not given out)."""
        cache, step = DynamicCache(config=self.net.config), list(ids)
        for _ in range(max_new_tokens):
            token = int(self.logits(step, cache)[-1].argmax())
            if token == self.tokenizer.eos_token_id:
                return
            yield token
            step = [token]

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], cache: DynamicCache | None = None, last: int = 1) -> torch.Tensor:
        """Logits that follow each of the `last` tokens of `ids` (which come after what the cache holds)."""
        answer = self.net(torch.tensor([ids]), past_key_values=cache, use_cache=cache is not None, logits_to_keep=last)
        logits: torch.Tensor = answer.logits[0]
        return logits


@function(outputs={"deltas": Stream(Json())})
class Complete:
    """Continues a chat or a text as a request in the names of the OpenAI API says (docs/llm.md, "The chat stage")."""

    def setup(self, model: str = "smollm2", max_tokens: int = 512, dtype: str = "bfloat16") -> None:
        self.model, self.max_tokens = Model(model, dtype), max_tokens

    async def __call__(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        asked = requests.parse(request)
        params = requests.sampling(asked, max_tokens=self.max_tokens, temperature=0.0)
        tokenizer = self.model.tokenizer
        if asked.messages is not None:
            messages = requests.flatten(asked.messages)
            asked_text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(asked_text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(asked.prompt)["input_ids"] if isinstance(asked.prompt, str) else asked.prompt
        tokens: list[int] = []
        told, said = 0, ""
        limit = self.max_tokens if params.max_tokens is None else params.max_tokens
        for token in self.model.greedy(ids, limit):
            tokens.append(token)
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            if text != said and not text.endswith(UNFINISHED):
                yield {"text": text[len(said) :], "tokens": tokens[told:]}
                told, said = len(tokens), text
        yield {
            "tokens": tokens[told:],
            "finish_reason": "length" if len(tokens) == limit else "stop",
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(tokens), "cached_tokens": 0},
        }


@function(outputs={"text": Stream(Text()), "reply": Text()})
class Chat:
    """Answers a prompt: `text` piece by piece as it is written, `reply` as a whole at the end."""

    def setup(
        self,
        model: str = "smollm2",
        system: str = "",
        examples: Sequence[Sequence[str]] = (),
        max_new_tokens: int = 96,
        dtype: str = "bfloat16",
    ) -> None:
        self.model, self.system, self.examples = Model(model, dtype), system, examples
        self.max_new_tokens = max_new_tokens

    def __call__(self, prompt: str) -> Generator[Mapping[str, str], None, Mapping[str, str]]:
        tokens: list[int] = []
        said = ""
        ids = self.model.chat_ids(prompt, self.system, self.examples)
        for token in self.model.greedy(ids, self.max_new_tokens):
            tokens.append(token)
            text = self.model.tokenizer.decode(tokens, skip_special_tokens=True)
            if text != said and not text.endswith(UNFINISHED):
                yield {"text": text[len(said) :]}
                said = text
        return {"reply": said}


@function(outputs={"label": Text(), "scores": Json()})
class Choose:
    """The label that the model finds likeliest as its answer, and the probability of each.

    `examples`: pairs of message and label that show the task. What they favour by themselves is divided out
    (contextual calibration).
    """

    def setup(
        self,
        labels: Sequence[str],
        instruction: str,
        examples: Sequence[Sequence[str]] = (),
        model: str = "smollm2",
        dtype: str = "bfloat16",
    ) -> None:
        self.model, self.labels = Model(model, dtype), list(labels)
        shown = "".join(f"Message: {message}\nLabel: {label}\n\n" for message, label in examples)
        self.prefix = f"{instruction}\n\n{shown}Message: "
        self.bias = self._likelihoods("N/A")  # what the examples alone make likely, whatever the message

    def __call__(self, message: str) -> Mapping[str, Any]:
        likely = [p / q for p, q in zip(self._likelihoods(message), self.bias, strict=True)]
        scores = {label: round(p / sum(likely), 4) for label, p in zip(self.labels, likely, strict=True)}
        return {"label": max(scores, key=lambda label: scores[label]), "scores": scores}

    def _likelihoods(self, message: str) -> list[float]:
        prompt = self.model.tokenizer(f"{self.prefix}{message}\nLabel:")["input_ids"]
        return [math.exp(self._log_probability(prompt, label)) for label in self.labels]

    def _log_probability(self, prompt: list[int], label: str) -> float:
        answer = self.model.tokenizer(f" {label}\n")["input_ids"]
        logits = self.model.logits(prompt + answer[:-1], last=len(answer))
        each = logits.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        return float(each.sum())
