"""The server is killed with work under way: its processes go with it, and its work is done by the next one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import workflows_for_tests as w

from dataflower.errors import Code, FailedPrecondition
from dataflower.host.api import State
from dataflower.host.database import FILE, JournalUnreadable
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig

pytestmark = pytest.mark.fault
SERVER = Path(__file__).with_name("server_for_tests.py")


def config(state: Path, **settings: bool) -> HostConfig:
    shown = (str(state.parent),)  # functions leave marks there
    return HostConfig(
        state_dir=state, code_path=w.CODE_PATH, cpus=2, drain_timeout_s=0.0, writable_paths=shown, **settings
    )


def wait_gone(pid: int) -> None:
    """Return when the process has ended (it is nobody's child here, so its end can only be seen by descriptor)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 10.0)[0], f"process {pid} lives on"
    finally:
        os.close(descriptor)


def serve_and_kill(state: Path, answer: Path, *, started: int) -> str:
    """Start a server, let it run until its function has begun `started` times, kill -9 it; returns what it said."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*w.CODE_PATH, *sys.path])}
    arguments = [sys.executable, str(SERVER), str(state), str(answer)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        said = server.stdout.readline().split()
        marks = answer.with_suffix(".started")
        while said[0] == "running" and (not marks.exists() or len(marks.read_text().split()) < started):
            assert server.poll() is None
        server.send_signal(signal.SIGKILL)
    for pid in said[1:]:
        wait_gone(int(pid))
    return said[0]


async def test_a_submission_outlives_kill_9(tmp_path: Path) -> None:
    state, answer = tmp_path / "state", tmp_path / "answer.txt"
    assert serve_and_kill(state, answer, started=1) == "running"
    answer.write_text("42")
    async with Runtime(config(state), load=w.load) as host:
        records = [record async for record in host.watch("job")]
    assert records[-1].state is State.SUCCEEDED
    assert records[-1].outputs == {"y": "42"}
    assert len(answer.with_suffix(".started").read_text().split()) == 2


async def test_one_that_takes_the_server_down_again_and_again_is_given_up(tmp_path: Path) -> None:
    state, answer = tmp_path / "state", tmp_path / "answer.txt"
    for run in (1, 2, 3):
        assert serve_and_kill(state, answer, started=run) == "running"
    assert serve_and_kill(state, answer, started=3) == "failed"
    async with Runtime(config(state), load=w.load) as host:
        record = await host.get("job")
    assert record.state is State.FAILED
    assert record.failure is not None
    assert record.failure.code is Code.UNAVAILABLE
    assert "3 times" in record.failure.message


async def test_one_whose_workflow_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    state = tmp_path / "state"
    serve_and_kill(state, tmp_path / "answer.txt", started=1)

    def load(source: str, file: str) -> w.Workflow:
        raise FailedPrecondition(f"{file}: {source} is gone")

    async with Runtime(config(state), load=load) as host:
        assert host.workflows() == ()
        record = await host.get("job")
    assert record.state is State.FAILED
    assert record.failure is not None
    assert "wait_for_file@1: wait_for_file is gone" in record.failure.message


async def test_two_hosts_cannot_share_a_directory(tmp_path: Path) -> None:
    async with Runtime(config(tmp_path), load=w.load):
        with pytest.raises(FailedPrecondition, match="in use by another server"):
            async with Runtime(config(tmp_path), load=w.load):
                pass


async def test_a_damaged_journal_is_named_and_set_aside_on_request(tmp_path: Path) -> None:
    async with Runtime(config(tmp_path), load=w.load) as host:
        await host.apply(w.counting(), "counting")
    (tmp_path / FILE).write_bytes(b"this is no database" * 1000)
    with pytest.raises(JournalUnreadable, match=str(tmp_path / FILE)):
        async with Runtime(config(tmp_path), load=w.load):
            pass
    async with Runtime(config(tmp_path, set_aside_corrupt_journal=True), load=w.load) as host:
        assert host.workflows() == ()
    assert list(tmp_path.glob(f"{FILE}.corrupt-*"))
