"""What a function can do from within its sandbox: nothing to others, everything that it needs for itself."""

from __future__ import annotations

import os
import platform
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflower import wire
from dataflower.testing.container_driver import ContainerDriver, ZygoteDriver
from dataflower.wire import Walls

HERE = str(Path(__file__).parent)
SECRET = "the-server-s-own-secret"
KINDS = [Walls.ROOM, Walls.LANDLOCK]
only_rooms = pytest.mark.parametrize("zygote", [Walls.ROOM], indirect=True, scope="module", ids=["room"])
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers of x86-64")


@pytest.fixture(scope="module", params=KINDS, ids=[kind.value for kind in KINDS])
def zygote(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZygoteDriver]:
    options = ["--isolate", f"--at-most={request.param.value}", f"--readable={HERE}"]
    with ZygoteDriver(["numpy"], options=options) as running:
        if running.ready.walls is not request.param:
            pytest.skip(f"not possible on this machine: {running.ready.why_not}")
        yield running


@pytest.fixture
def kind(zygote: ZygoteDriver) -> Walls:
    return zygote.ready.walls


class Cell:
    """Starts functions in sandboxes of their own."""

    def __init__(self, zygote: ZygoteDriver, folder: Path) -> None:
        self.zygote = zygote
        self._folder = folder
        self.started: list[ContainerDriver] = []

    def start(self, function: str, **options: Any) -> ContainerDriver:
        number = len(self.started)
        given = {"isolated": True, "code_path": (HERE,), "scratch": str(self._folder / f"scratch{number}"), **options}
        container = self.zygote.start(f"escape_functions:{function}", self._folder / f"{number}.log", **given)
        self.started.append(container)
        return container

    def ask(self, function: str, inputs: dict[str, Any] | None = None, **options: Any) -> Any:
        return self.start(function, **options).result(inputs)


@pytest.fixture
def cell(zygote: ZygoteDriver, tmp_path: Path) -> Iterator[Cell]:
    made = Cell(zygote, tmp_path)
    yield made
    for container in made.started:
        container.close()
        zygote.exited(container)


def test_files_outside_are_neither_read_nor_written(cell: Cell, kind: Walls, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("of another tenant")
    unseen = {"ENOENT"} if kind is Walls.ROOM else {"EACCES"}
    for path in (tmp_path / "other", Path("/etc/shadow"), Path("/var/log")):
        assert cell.ask("read", {"path": str(path)}) in unseen, path
    assert cell.ask("read", {"path": __file__}) == "done"
    for path in (__file__, "/usr/x", "/etc/passwd"):
        assert cell.ask("write", {"path": str(path)}) in ("EROFS", "EACCES"), path
    scratch = cell.ask("write_scratch")
    assert scratch == "/tmp" if kind is Walls.ROOM else scratch.startswith(str(tmp_path))


def test_shown_files_are_changed_only_where_that_was_asked_for(tmp_path: Path) -> None:
    tmp_path.joinpath("read").write_text("")
    (tmp_path / "open").mkdir()
    for kind in KINDS:
        options = ["--isolate", f"--at-most={kind.value}", f"--readable={HERE}", f"--readable={tmp_path}"]
        with ZygoteDriver(options=[*options, f"--writable={tmp_path}/open"]) as zygote:
            folder = tmp_path / kind.value
            folder.mkdir()
            cell = Cell(zygote, folder)
            assert cell.ask("write", {"path": f"{tmp_path}/read"}) in ("EROFS", "EACCES")
            assert cell.ask("write", {"path": f"{tmp_path}/open/{kind.value}"}) == "done"
            assert (tmp_path / "open" / kind.value).read_bytes() == b"x"


def test_what_is_hidden_stays_hidden_below_a_shown_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal").write_text("everything")
    (tmp_path / "token").write_text("secret")
    options = ["--isolate", f"--readable={HERE}", f"--readable={tmp_path}"]
    with ZygoteDriver(options=[*options, f"--hidden={tmp_path}/state", f"--hidden={tmp_path}/token"]) as zygote:
        if zygote.ready.walls is not Walls.ROOM:
            pytest.skip(f"no namespaces: {zygote.ready.why_not}")
        cell = Cell(zygote, tmp_path)
        assert cell.ask("read", {"path": f"{tmp_path}/state/journal"}) == "ENOENT"
        assert cell.ask("read", {"path": f"{tmp_path}/token"}) in ("done", "EACCES")  # an empty file in its place
        assert (tmp_path / "token").read_text() == "secret"


def test_it_has_no_rights_and_gets_none(cell: Cell, kind: Walls) -> None:
    found = cell.ask("me")
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert {int(found[name], 16) for name in ("CapEff", "CapPrm")} == {0}
    assert cell.ask("make_device") in {"EPERM", "EACCES"}
    if kind is Walls.ROOM:
        assert (found["uid"] != 0, int(found["CapBnd"], 16)) == (True, 0)


def test_it_sees_no_process_but_its_own(cell: Cell, kind: Walls) -> None:
    other = cell.start("me")
    if kind is Walls.ROOM:
        assert cell.ask("processes") == [1, 2]
    for function in ("kill", "memory_of"):
        for pid in (os.getpid(), other.pid, cell.zygote.process.pid):
            said = cell.ask(function, {"pid": pid})
            assert said in ({"ESRCH", "ENOENT"} if kind is Walls.ROOM else {"EPERM", "EACCES"}), (function, pid, said)
    assert other.result()["NoNewPrivs"] == "1"


@only_rooms
def test_the_first_process_of_a_room_is_out_of_reach(cell: Cell) -> None:
    assert cell.ask("memory_of", {"pid": 1}) in ("EACCES", "EPERM")
    container = cell.start("kill")
    assert container.result({"pid": 1}) in ("done", "EPERM")  # the kernel drops signals for it, however sent
    assert container.result({"pid": 1}) in ("done", "EPERM")


def test_the_network_is_reached_only_where_that_was_asked_for(cell: Cell, kind: Walls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused = cell.ask("connect", {"host": "127.0.0.1", "port": port})
        assert refused == ("ECONNREFUSED" if kind is Walls.ROOM else "EACCES")
        assert cell.ask("connect", {"host": "127.0.0.1", "port": port}, network=True) == "done"
    with socket.socket(socket.AF_UNIX) as server:
        name = f"dataflower-test-{os.getpid()}"
        server.bind("\0" + name)
        server.listen()
        assert cell.ask("connect_abstract", {"name": name}) in ("ECONNREFUSED", "EPERM")
    if kind is Walls.ROOM:
        assert cell.ask("local_socket") == "x"


@needs_x86
def test_system_calls_that_reach_out_are_refused(cell: Cell) -> None:
    found = cell.ask("calls")
    assert set(found.values()) <= {"EPERM", "EACCES", "ENOSYS"}, found


def test_inputs_can_neither_be_changed_nor_cut_off(cell: Cell) -> None:
    reader, hostile = cell.start("tamper"), cell.start("tamper")
    data = np.arange(1_000_000)
    for container in (hostile, reader):
        assert "done" not in container.result({"x": data}).values()
        task = container.run({"x": data})
        assert container.next(wire.TaskDone).task == task


def test_inputs_can_neither_be_changed_nor_cut_off_without_a_sandbox(tmp_path: Path) -> None:
    data = np.arange(1_000_000)
    with ZygoteDriver(["numpy"]) as zygote:
        container = zygote.start("escape_functions:tamper", tmp_path / "log", code_path=(HERE,))
        found = container.result({"x": data})
        container.close()
        zygote.exited(container)
    assert found
    assert "done" not in found.values(), found


def test_nothing_of_the_server_s_environment_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflower.host.environment import visible

    monkeypatch.setenv("DATAFLOWER_API_KEYS", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MY_SETTING", "mine")
    seen = visible(os.environ, ("MY_*",))
    for name in os.environ:
        if name not in seen:
            monkeypatch.delenv(name)
    with ZygoteDriver(options=["--isolate", f"--readable={HERE}"]) as zygote:
        found = Cell(zygote, tmp_path).ask("environment")
        for text in found.values():
            assert SECRET not in text
            assert "MY_SETTING=mine" in text


@only_rooms
def test_what_it_has_forked_ends_with_it(cell: Cell) -> None:
    for function in ("forks", "spawns"):
        container = cell.start(function)
        container.result({"path": ""} if function == "forks" else None)
        inner = [int(pid) for pid in Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()]
        assert len(inner) == 1
        pidfd = os.pidfd_open(inner[0])
        os.kill(container.pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], 20.0)[0], "it lives on"
        os.close(pidfd)


@only_rooms
def test_orphans_are_collected(cell: Cell) -> None:
    assert cell.ask("orphans") == 0


def test_a_death_is_told_as_it_was(cell: Cell) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGABRT):
        container = cell.start("kill")
        cell.started.remove(container)
        os.kill(container.pid, number)
        assert cell.zygote.exited(container) == -number
        container.close()


def test_rooms_outlive_the_zygote_as_long_as_they_are_lived_in(tmp_path: Path) -> None:
    with ZygoteDriver(options=["--isolate", f"--readable={HERE}"]) as zygote:
        if zygote.ready.walls is not Walls.ROOM:
            pytest.skip(f"no namespaces: {zygote.ready.why_not}")
        keeper = os.pidfd_open(zygote.next(wire.Kept).pid)
        container = Cell(zygote, tmp_path).start("me")
        os.kill(zygote.process.pid, signal.SIGKILL)
        zygote.process.wait()
        assert container.result()["pid"] == 2
        assert not select.select([keeper], [], [], 0)[0]
        container.close()
        assert select.select([keeper], [], [], 20.0)[0]
        os.close(keeper)


def test_a_container_that_demands_a_sandbox_is_not_made_without_one(tmp_path: Path) -> None:
    with ZygoteDriver(options=["--isolate", "--at-most=none"]) as zygote:
        assert zygote.ready.walls is Walls.NONE
        plain = zygote.start("escape_functions:me", tmp_path / "log", code_path=(HERE,), isolated=True)
        assert plain.result()["Seccomp"] == "0"
        ours, theirs = zip(*(wire_pair() for _ in range(3)), strict=True)
        order = wire.Fork(9, "x:y", "s", "w", b"\x80", (), (), isolated=True, demanded=True)
        zygote.link.send(wire.encode(order), [end.fileno() for end in theirs])
        said = zygote.next(wire.Exited)
        assert (said.container, "it demands a sandbox" in said.reason) == (9, True)
        for end in (*ours, *theirs):
            end.close()


def wire_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_uses_the_threads_that_it_is_given(cell: Cell, threads: int) -> None:
    pytest.importorskip("threadpoolctl")
    found = cell.ask("threads", threads=threads)
    assert found.get("openblas", threads) == threads
