"""A process of bench.gpu: a function that shares a backbone on a device; does what it is told, and says what it took.

Told by lines: `context`, `attach`, `first`, `decode BATCH TOKENS ROUNDS`. Answers are JSON, a line each.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from typing import Any

now = time.monotonic


def main() -> None:
    user = User(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    for line in sys.stdin:
        name, *numbers = line.split()
        print(json.dumps(getattr(user, name)(*map(int, numbers))), flush=True)
    if user.runner is not None:
        user.runner.close()


class User:
    """`began`: when its start was ordered, on the machine's monotonic clock."""

    def __init__(self, model: str, device: str, began: float) -> None:
        import torch
        import transformers.models.llama.modeling_llama  # noqa: F401

        from dataflower import phases
        from dataflower.llm import model as models
        from dataflower.llm.runner import Runner

        self.torch, self.phases, self.models, self.runner_of = torch, phases, models, Runner
        self.model, self.device, self.import_s = model, device, now() - began
        self.weights: Any = None
        self.runner: Any = None

    def context(self) -> dict[str, float]:
        """What any process on the device has, sharing or not."""
        begun = now()
        if self.device.startswith("cuda"):
            ones = self.torch.ones(64, 64, dtype=self.torch.bfloat16, device=self.device)
            (ones @ ones).sum().item()  # matrix kernels and their work space come with the first product
        return {"import_s": self.import_s, "context_s": now() - begun}

    def attach(self) -> dict[str, float]:
        """The weights, and a model over them."""
        from transformers import AutoConfig

        from dataflower import checkpoint

        torch = self.torch
        begun = now()
        self.weights = checkpoint.open(self.model, device=self.device)
        opened = now()
        device = torch.device(self.weights.torch_device)
        config = AutoConfig.from_pretrained(self.weights.config_dir)
        tensors = self.weights.tensors()
        net = self.models.build(config, tensors, dtype=torch.bfloat16, device=device, packed=False)
        self.runner = self.runner_of(net, kv_bytes=2**28, identity=self.weights.digest, limits=limits(32)).start()
        spent = {f"{phase.kind.value}_s": phase.seconds for phase in self.phases.collect()}
        block = self.weights._block
        return {"open_s": opened - begun, "build_s": now() - opened, "read_only": block.read_only, **spent}

    def first(self) -> dict[str, float]:
        """Warm-up, and the first token of a prompt of 64."""
        begun = now()
        self.runner.warm_up()
        warm = now()
        stream = self.runner.stream(prompt(self.vocabulary, 1), params(2))
        next(stream)
        first = now()
        list(stream)
        return {"warm_up_s": warm - begun, "first_token_s": first - warm}

    def decode(self, batch: int, tokens: int, rounds: int) -> dict[str, list[float]]:
        """Tokens a second of both, by turns; the first turn is not counted."""
        from dataflower.checkpoint import skeleton

        net = skeleton.build(self.weights)
        ours, theirs = [], []
        for number in range(rounds + 1):
            pair = self.ours(batch, tokens, number), self.theirs(net, batch, tokens, number)
            if number:
                ours.append(pair[0])
                theirs.append(pair[1])
        return {"ours": ours, "theirs": theirs, "median": [statistics.median(ours), statistics.median(theirs)]}

    @property
    def vocabulary(self) -> int:
        return int(self.runner.model.vocabulary)

    def ours(self, batch: int, tokens: int, seed: int) -> float:
        prompts = [prompt(self.vocabulary, 1000 * seed + row) for row in range(batch)]
        streams = [self.runner.stream(one, params(tokens + 1)) for one in prompts]
        for stream in streams:
            next(stream)
        begun = now()
        made = sum(1 for stream in streams for _ in stream)
        return made / (now() - begun)

    def theirs(self, net: Any, batch: int, tokens: int, seed: int) -> float:
        torch = self.torch
        given = torch.tensor([prompt(self.vocabulary, 1000 * seed + row) for row in range(batch)])
        given = given.to(self.weights.torch_device)
        clock = Clock()
        with torch.inference_mode():
            net.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=tokens + 1,
                min_new_tokens=tokens + 1,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[clock.criterion],
            )
        return batch * tokens / (clock.last - clock.first)


class Clock:
    """When the first tokens, and the last, were there."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def criterion(self, tokens: Any, scores: Any, **_: Any) -> Any:
        import torch

        tokens[0, -1].item()  # it is there
        self.last = now()
        self.first = self.first or self.last
        return torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)


def params(tokens: int) -> Any:
    from dataflower.llm.params import SamplingParams

    return SamplingParams(max_tokens=tokens, ignore_eos=True)


def limits(sequences: int) -> Any:
    from dataflower.llm.scheduler import Limits

    return Limits(sequences=sequences)


def prompt(vocabulary: int, seed: int, tokens: int = 64) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(3, vocabulary) for _ in range(tokens)]


if __name__ == "__main__":
    main()
