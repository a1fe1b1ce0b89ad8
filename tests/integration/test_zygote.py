"""The fork server itself: what it preloads, what it hands on to its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.testing.container_driver import ZygoteDriver

HERE = str(Path(__file__).parent)
PATIENCE_S = 60.0


def status_field(pid: int, name: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return line.partition(":")[2].strip()
    raise AssertionError(f"no {name} in the status of {pid}")


def test_it_preloads_what_there_is_and_names_what_is_not() -> None:
    with ZygoteDriver(["numpy", "no_such_library_here"]) as zygote:
        assert zygote.ready.version == wire.VERSION
        assert zygote.ready.pid == zygote.process.pid
        assert zygote.ready.missing == ("no_such_library_here",)
        assert status_field(zygote.process.pid, "Threads") == "1"


def test_ctrl_c_is_not_for_the_zygote(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        os.kill(zygote.process.pid, signal.SIGINT)
        container = zygote.start("container_functions:same", tmp_path / "log", code_path=(HERE,))
        assert container.result({"x": 1}) == 1


def test_containers_live_in_sessions_of_their_own_without_privileges_to_gain(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        container = zygote.start("container_functions:same", tmp_path / "log", code_path=(HERE,))
        assert os.getsid(container.pid) == container.pid
        assert status_field(container.pid, "NoNewPrivs") == "1"
        limits = Path(f"/proc/{container.pid}/limits").read_text()
        assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
        mine = int(Path("/proc/self/oom_score_adj").read_text())
        assert int(Path(f"/proc/{container.pid}/oom_score_adj").read_text()) > mine


def test_containers_yield_the_processor_to_the_host(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        container = zygote.start("container_functions:same", tmp_path / "log", code_path=(HERE,))
        assert os.getpriority(os.PRIO_PROCESS, container.pid) > os.getpriority(os.PRIO_PROCESS, 0)


def test_memory_that_each_task_needs_stays_with_the_container(tmp_path: Path) -> None:
    with ZygoteDriver(["numpy"]) as zygote:
        container = zygote.start("container_functions:faults_of", tmp_path / "log", code_path=(HERE,))
        pages = 8 * (16 << 20) // os.sysconf("SC_PAGESIZE")
        assert container.result({"nbytes": 16 << 20, "blocks": 8, "rounds": 5}) < pages / 100


def test_too_much_memory_is_an_error_of_the_task(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        log = tmp_path / "log"
        container = zygote.start("container_functions:greedy", log, code_path=(HERE,), memory_bytes=200 << 20)
        container.run({"nbytes": 1 << 30})
        assert container.next(wire.TaskFailed).error.kind in ("MemoryError", "_ArrayMemoryError")
        assert container.result({"nbytes": 1 << 20}) == 1 << 20


def test_an_idle_container_uses_no_processor(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        container = zygote.start("container_functions:same", tmp_path / "log", code_path=(HERE,))
        container.result({"x": 1})
        end = time.monotonic() + PATIENCE_S
        seen: list[list[str]] = []
        while (now := [switches(pid) for pid in (container.pid, zygote.process.pid)]) != seen:
            assert time.monotonic() < end, "it wakes up again and again"
            seen = now
            time.sleep(0.3)


def switches(pid: int) -> list[str]:
    """How often each thread of a process went to sleep: it does not grow while nothing wakes it."""
    return [
        line
        for task in sorted(os.listdir(f"/proc/{pid}/task"))
        for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_runs_in_children_on_the_threads_they_are_given(tmp_path: Path, threads: int) -> None:
    pytest.importorskip("torch")
    with ZygoteDriver(["torch"]) as zygote:
        assert status_field(zygote.process.pid, "Threads") == "1"
        log, log2 = tmp_path / "1.log", tmp_path / "2.log"
        first = zygote.start("container_functions:torch_op", log, code_path=(HERE,), threads=threads)
        assert first.result({"x": np.ones(200_000, np.float32)}) == 400_000
        second = zygote.start("container_functions:threads", log2, code_path=(HERE,), threads=threads)
        assert second.result() == threads


def test_siblings_draw_different_random_numbers(tmp_path: Path) -> None:
    with ZygoteDriver(["numpy.random"]) as zygote:
        drawn = set()
        for i in range(3):
            container = zygote.start("container_functions:draws", tmp_path / str(i), code_path=(HERE,))
            drawn.add(tuple(container.result()))
        assert len(drawn) == 3


def test_a_crash_in_c_code_leaves_a_trace_in_the_log(tmp_path: Path) -> None:
    with ZygoteDriver() as zygote:
        container = zygote.start("container_functions:segfaults", tmp_path / "log", code_path=(HERE,))
        container.run()
        assert zygote.exited(container) == -signal.SIGSEGV
        assert "in segfaults" in container.log


def test_a_host_that_does_not_wait_for_it_is_no_error() -> None:
    ours, theirs = Link.pair()
    command = [sys.executable, "-m", "dataflower.container.zygote", "--fd", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE, text=True) as zygote:
        theirs.close()
        ours.close()
        _, said = zygote.communicate()
    assert (zygote.returncode, said) == (0, "")
