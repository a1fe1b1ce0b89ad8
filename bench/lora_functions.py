"""The rival of bench.lora: functions that own everything, backbone included.

As a function of the engine it starts like ours (forked from a zygote with the libraries) and differs in its own copy of
the backbone alone. As a program it is what a serverless platform without preloading starts: a fresh process.

python -m bench.lora_functions MODEL ADAPTER: a line with its first token and one with its last, then it stays
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import torch

from dataflower.llm.chat import ChatStage
from dataflower.llm.files import read_model, read_weights
from dataflower.llm.model import build
from dataflower.llm.params import SamplingParams
from dataflower.llm.runner import Runner
from dataflower.spec.function import Json, Stream, function

PROMPT = list(range(1000, 1037))


def start(model: str, adapter: str) -> tuple[Runner, Any]:
    """A runner with a copy of its own of everything."""
    files = read_model(model)
    net = build(files.config, read_weights(model), dtype=torch.bfloat16, device=torch.device("cpu"))
    runner = Runner(net, tokenizer=files.tokenizer, ends=files.ends, identity=model).start()
    runner.warm_up()
    runner.adapters.load("mine", adapter)
    return runner, files.tokenizer


@function(outputs={"deltas": Stream(Json())})
class Exclusive:
    """`functions.llm:Complete` with one adapter and its own backbone."""

    def setup(self, model: str, adapter: str) -> None:
        self.runner, tokenizer = start(model, adapter)
        self.stage = ChatStage(self.runner, tokenizer, max_tokens=512, temperature=1.0)

    async def __call__(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        async with aclosing(self.stage.answer(request)) as deltas:
            async for delta in deltas:
                yield delta

    def close(self) -> None:
        self.runner.close()


def main() -> None:
    torch.set_num_threads(1)
    model, adapter = sys.argv[1:]
    runner, _ = start(model, adapter)
    stream = runner.stream(PROMPT, SamplingParams(max_tokens=32, ignore_eos=True), adapter="mine")
    next(stream)
    print("first", flush=True)
    for _ in stream:
        pass
    print("last", flush=True)
    sys.stdin.read()
    runner.close()


if __name__ == "__main__":
    main()
