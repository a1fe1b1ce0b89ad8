"""A process that waits beside a fork server to become the next container."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from dataflower import wire
from dataflower.testing.container_driver import ZygoteDriver

HERE = str(Path(__file__).parent)
ISOLATED = ("--isolate", f"--readable={HERE}")


def have_spare(zygote: ZygoteDriver, *, isolated: bool = False) -> int:
    """Order a spare; gives its process id."""
    zygote.link.send(wire.encode(wire.Spare(isolated=isolated)))
    return zygote.next(wire.Prepared).pid


@pytest.mark.parametrize("isolated", [False, True])
def test_the_spare_is_the_next_container_and_the_one_after_is_forked(tmp_path: Path, isolated: bool) -> None:
    with ZygoteDriver(["numpy"], options=ISOLATED if isolated else ()) as zygote:
        spare = have_spare(zygote, isolated=isolated)
        first = zygote.start("container_functions:same", tmp_path / "1", code_path=(HERE,), isolated=isolated)
        second = zygote.start("container_functions:same", tmp_path / "2", code_path=(HERE,), isolated=isolated)
        assert first.pid == spare != second.pid
        assert first.result({"x": 1}) == second.result({"x": 1}) == 1
        first.close()
        assert zygote.exited(first) == 0


def test_what_a_spare_prints_goes_to_the_containers_own_log(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        have_spare(zygote)
        container = zygote.start("container_functions:segfaults", tmp_path / "log", code_path=(HERE,))
        container.run()
        assert zygote.exited(container) == -signal.SIGSEGV
        assert "in segfaults" in container.log


def test_memory_of_a_spare_is_limited_when_it_is_known_how_far(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        spare = have_spare(zygote)
        log = tmp_path / "log"
        container = zygote.start("container_functions:greedy", log, code_path=(HERE,), memory_bytes=200 << 20)
        assert container.pid == spare
        container.run({"nbytes": 1 << 30})
        assert container.next(wire.TaskFailed).error.kind in ("MemoryError", "_ArrayMemoryError")


def test_a_spare_that_died_is_done_without(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        spare = have_spare(zygote)
        os.kill(spare, signal.SIGKILL)
        assert zygote.next(wire.Exited) == wire.Exited(0, -signal.SIGKILL)
        container = zygote.start("container_functions:same", tmp_path / "log", code_path=(HERE,))
        assert container.pid != spare
        assert container.result({"x": 1}) == 1


@pytest.mark.parametrize("asked", [{"gpu": True}, {"groups": ("/proc/self/comm",)}])
def test_a_container_of_another_kind_leaves_the_spare_alone(tmp_path: Path, asked: dict[str, object]) -> None:
    with ZygoteDriver() as zygote:
        spare = have_spare(zygote)
        other = zygote.start("container_functions:same", tmp_path / "1", code_path=(HERE,), **asked)
        assert other.pid != spare
        plain = zygote.start("container_functions:same", tmp_path / "2", code_path=(HERE,))
        assert plain.pid == spare


def test_the_spare_ends_with_its_zygote() -> None:
    with ZygoteDriver() as zygote:
        spare = os.pidfd_open(have_spare(zygote))
        zygote.close()
        assert select.select([spare], [], [])[0] == [spare]
        os.close(spare)


def test_a_spare_whose_host_removed_its_groups_leaves_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ZygoteDriver() as zygote:
        zygote.link.send(wire.encode(wire.Spare(isolated=False, groups=(str(tmp_path / "gone" / "cgroup.procs"),))))
        zygote.next(wire.Prepared)
        assert zygote.next(wire.Exited) == wire.Exited(0, 0)
        container = zygote.start("container_functions:same", tmp_path / "log", code_path=(HERE,))
        assert container.result({"x": 1}) == 1
    assert capfd.readouterr().err == ""
