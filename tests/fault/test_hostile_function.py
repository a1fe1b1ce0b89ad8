"""A container that speaks for itself, and not the truth: it is named and ended, and others are served meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_rig import PATIENCE_S, Rig, opened, workflow
from hostile_functions import ACTS

from dataflower.errors import Code, InvocationFailed

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]

HOSTILE = workflow(
    "hostile",
    "inputs: {act: string}\nstages:\n  liar: {function: 'hostile_functions:hostile', inputs: {act: inputs.act}}\n"
    "outputs: {out: liar.out}\n",
)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with opened(code_path=(str(Path(__file__).parent), str(Path(__file__).parent.parent))) as rig:
        yield rig


@pytest.mark.parametrize("act", ACTS)
async def test_whatever_a_container_says_it_alone_is_ended(rig: Rig, act: str) -> None:
    await rig.client.apply(HOSTILE)
    assert await rig.client.invoke("echo", x=1) == {"out": 1}
    with pytest.raises(InvocationFailed) as caught:
        await rig.client.invoke("hostile", act=act, deadline_s=PATIENCE_S)
    failure = caught.value.failure
    assert (failure.code, failure.kind, failure.stage) == (Code.INTERNAL, "ContainerCrashed", "liar")
    assert "container of stage 'liar'" in failure.message
    assert "protocol" in failure.message or "did not leave" in failure.message or "exited" in failure.message
    assert await rig.client.invoke("echo", x=2) == {"out": 2}
    assert await rig.client.invoke("hostile", act="none") == {"out": "nothing"}
