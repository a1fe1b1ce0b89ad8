"""A LoRA function of its own that also does what it should not; `tests/` must be on the code path."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dataflower import checkpoint
from dataflower.llm.files import read_model
from dataflower.llm.model import build
from dataflower.llm.params import SamplingParams
from dataflower.llm.runner import Runner
from dataflower.spec.function import Json, Stream, function


@function(outputs={"out": Stream(Json())})
class Tenant:
    """Continues tokens with its adapter; `act` says what else it does. `ballast`: bytes that it takes besides."""

    def setup(self, model: str, adapter: str, ballast: int = 0) -> None:
        self.ballast = b"x" * ballast
        with checkpoint.open(model, packed="float32") as weights:
            config = read_model(weights.config_dir).config
            net = build(
                config,
                weights.tensors(),
                dtype=torch.float32,
                device=torch.device("cpu"),
                packed=False,
                metadata=weights.metadata,
            )
        self.runner = Runner(net, identity=weights.digest).start()
        self.adapter = self.runner.adapters.load("mine", adapter)

    async def __call__(self, prompt: list[int], tokens: int, act: str) -> AsyncIterator[Mapping[str, Any]]:
        if act == "write":
            ctypes.memset(self.runner.model.embedding.weight.data_ptr(), 0, 1)
        if act == "look":
            yield look()
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        with self.runner.generate(prompt, params, adapter=self.adapter) as outputs:
            async for output in outputs:
                yield {"token": output.token}

    def trim(self) -> None:
        self.runner.trim()

    def close(self) -> None:
        self.runner.close()


def look() -> dict[str, Any]:
    """What a function can get at: processes, and the memory of the weights."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    backbone = [line.split() for line in maps if "dataflower-weights" in line]
    begin, end = (int(part, 16) for part in backbone[0][0].split("-"))
    libc = ctypes.CDLL(None, use_errno=True)
    protect = libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 3)
    refused = os.strerror(ctypes.get_errno()) if protect else "allowed"
    others = [pid for pid in os.listdir("/proc") if pid.isdigit() and re.search("dataflower", _command(pid))]
    return {"rights": sorted({line[1] for line in backbone}), "protect": refused, "others": _foreign(others)}


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _foreign(pids: list[str]) -> list[str]:
    """Those whose memory can be opened and that are not this process or its namespace's first one."""
    return [pid for pid in pids if pid not in ("1", str(os.getpid()))]
