"""A cancelled invocation whose outputs lie on the disk: what waits for them never runs, and nothing stays held."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_rig import count, opened, workflow

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]
MIB = 1 << 20
SPILLED = workflow(
    "spilled",
    """
inputs: {n: int, nbytes: int, path: string, log: string, later: string}
stages:
  make: {function: 'fault_functions:blocks', inputs: {n: inputs.n, nbytes: inputs.nbytes}}
  gate: {function: 'fault_functions:answered', inputs: {path: inputs.path, log: inputs.log}}
  after: {function: 'fault_functions:answered', inputs: {path: gate.out, log: inputs.later}}
outputs: {all: {gather: make.out}, last: after.out}
""",
)


async def test_outputs_on_disk_are_let_go_of_and_what_comes_later_never_runs(tmp_path: Path) -> None:
    path, log, later = tmp_path / "path", tmp_path / "log", tmp_path / "later"
    given = {"path": str(path), "log": str(log), "later": str(later)}
    async with opened(container_arena_bytes=4 * MIB, writable_paths=(str(tmp_path),)) as rig:
        engine = rig.host._engine

        def on_disk() -> bool:
            return any(engine.views.is_on_disk(arena) for arena in engine._sizes)

        await rig.client.apply(SPILLED)
        invocation = await rig.host.invoke("spilled", {"n": 12, "nbytes": MIB, **given})
        await rig.until(lambda: on_disk() and count(log) == 1)
        invocation.cancel()
        await invocation.wait_over()
        await rig.settled()  # no slot is held, on the disk or in memory
        path.write_text(str(path))  # the gate would open now
        assert await rig.client.invoke("echo", x=1) == {"out": 1}
        assert (count(log), count(later)) == (1, 0)
