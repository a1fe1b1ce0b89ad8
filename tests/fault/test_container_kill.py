"""kill -9 of zygotes and containers: what was handed over stays, what is alive goes on."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dataflower import wire
from dataflower.errors import EndOfStream, PeerGone
from dataflower.testing.container_driver import OUT, STREAM, ContainerDriver, ZygoteDriver

pytestmark = pytest.mark.fault

HERE = str(Path(__file__).parent.parent / "integration")
KILLED = -signal.SIGKILL


@contextmanager
def armed(points: str) -> Iterator[ZygoteDriver]:
    with ZygoteDriver(environ={"DATAFLOWER_FAILPOINTS": points}) as zygote:
        yield zygote


def start(zygote: ZygoteDriver, name: str, log: Path, **options: object) -> ContainerDriver:
    return zygote.start(f"container_functions:{name}", log, code_path=(HERE,), **options)


def assert_dead(zygote: ZygoteDriver, container: ContainerDriver) -> None:
    """Its death shows at both places: the zygote says so, and the sockets end."""
    assert zygote.exited(container) == KILLED
    with pytest.raises((EndOfStream, PeerGone)):
        container.receive()
    with pytest.raises((EndOfStream, PeerGone)):
        container.control.receive()


def test_containers_go_on_when_the_zygote_dies(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        container = start(zygote, "Counter", tmp_path / "log")
        assert container.result({"step": 1}) == "1"
        os.kill(zygote.process.pid, signal.SIGKILL)
        assert zygote.process.wait() == KILLED
        with pytest.raises((EndOfStream, PeerGone)):
            zygote.link.receive()
        assert container.result({"step": 1}) == "2"
        pidfd = os.pidfd_open(container.pid)
        container.close()
        assert os.path.exists(f"/proc/{container.pid}")  # until somebody reaps it
        wait_until_dead(pidfd)
        assert "counter closed at 2" in container.log


def wait_until_dead(pidfd: int) -> None:

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000)
    os.close(pidfd)


def test_zygote_dies_with_its_host(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        container = start(zygote, "same", tmp_path / "log")
        zygote.link.close()
        assert zygote.process.wait() == 0
        assert container.result({"x": 1}) == 1
        pidfd = os.pidfd_open(container.pid)
        container.close()
        wait_until_dead(pidfd)


def test_killed_before_it_has_started(tmp_path: Path) -> None:
    with armed("container.before_start:kill") as zygote:
        container = zygote.fork("container_functions:same", tmp_path / "log", code_path=(HERE,))
        assert_dead(zygote, container)


@pytest.mark.parametrize("point", ["before_run", "mid_write"])
def test_killed_with_a_task_that_had_no_result_yet(tmp_path: Path, point: str) -> None:
    with armed(f"container.{point}:kill:attempt=1") as zygote:
        container = start(zygote, "ones", tmp_path / "log", outputs=OUT)
        container.run({"n": 1_000_000})
        assert_dead(zygote, container)
        retried = start(zygote, "ones", tmp_path / "log2", outputs=OUT)
        retried.run({"n": 1_000_000}, attempt=2)
        assert int(retried.decode(retried.next(wire.TaskDone).outputs["out"]).sum()) == 1_000_000


@pytest.mark.parametrize("point", ["mid_compute", "mid_write"])
def test_what_a_stream_had_handed_over_outlives_the_container(tmp_path: Path, point: str) -> None:
    frames = np.arange(100_000, dtype=np.uint8)
    with armed(f"container.{point}:kill:hit=3") as zygote:
        container = start(zygote, "fresh_frames", tmp_path / "log", outputs=STREAM)
        container.run({"n": 5})
        items = [container.next(wire.TokenSent) for _ in range(2)]
        assert_dead(zygote, container)
        for item in items:
            assert np.array_equal(container.decode(item.outputs["out"]), frames + np.uint8(item.index))


def test_what_was_done_outlives_the_container(tmp_path: Path) -> None:
    with armed("container.after_handover:kill") as zygote:
        container = start(zygote, "ones", tmp_path / "log")
        container.run({"n": 1_000_000})
        value = container.next(wire.TaskDone).outputs["out"]
        assert_dead(zygote, container)
        assert int(container.decode(value).sum()) == 1_000_000


def test_points_can_name_a_stage(tmp_path: Path) -> None:
    with armed("container.before_run:kill:stage=doomed") as zygote:
        spared = start(zygote, "same", tmp_path / "log", stage="spared")
        doomed = start(zygote, "same", tmp_path / "log2", stage="doomed")
        assert spared.result({"x": 1}) == 1
        doomed.run({"x": 1})
        assert_dead(zygote, doomed)
        assert spared.result({"x": 2}) == 2


def test_kill_in_the_middle_of_user_code(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        container = start(zygote, "sleeps", tmp_path / "log")
        container.run()
        os.kill(container.pid, signal.SIGKILL)
        assert_dead(zygote, container)
        assert start(zygote, "same", tmp_path / "log2").result({"x": 1}) == 1
