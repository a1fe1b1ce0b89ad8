"""Models of a fake host that the clients of the Open Inference Protocol call, over gRPC and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from dataflower.spec.function import Kind, Port, PortType, Tensor, Text
from dataflower.testing.fake_host import FakeHost


async def _frames(n: int) -> AsyncIterator[np.ndarray[Any, Any]]:
    for i in range(n):
        yield np.full((2, 2), i, np.uint8)


async def _forever() -> None:
    await asyncio.Event().wait()


def host_with_models() -> FakeHost:
    """`double` a matrix, `shout` a text, stream `frames`, give the `same`, and never end (`forever`)."""
    host = FakeHost()
    matrix = Tensor("FP32", ["N", 3])
    host.add("double", lambda x: x * 2, inputs=(Port("x", matrix),), outputs=(Port("out", matrix),))
    host.add("shout", lambda text: text.upper(), inputs=(Port("text", Text()),), outputs=(Port("out", Text()),))
    picture = Port("out", Tensor("UINT8", [2, 2]), stream=True)
    host.add("frames", _frames, inputs=(Port("n", PortType(Kind.INT)),), outputs=(picture,))
    host.add("same", lambda x: x)
    host.add("forever", _forever)
    return host
