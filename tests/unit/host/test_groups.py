"""Control groups on an imitated hierarchy: what is made, what is written, what is left alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from dataflower.host.groups import MOST_PROCESSES, Groups, Limits, find

V1 = "5:cpu:/\n4:memory:/machine/own\n3:pids:/\n2:cpuset:/\n0::/\n"
V2 = "0::/user.slice/app.slice/server.scope\n"


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("_", ".", 1)).write_text(text)
    return path


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    for name in ("cpu", "memory/machine/own", "pids", "cpuset"):
        folder(tmp_path / name)
    return tmp_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    folder(tmp_path, cgroup_controllers="cpu memory pids io")
    folder(tmp_path / "user.slice" / "app.slice", cgroup_subtree_control="cpu memory pids")
    folder(tmp_path / "user.slice" / "app.slice" / "server.scope")
    return tmp_path


def test_v1_groups_lie_beside_the_servers_own(v1: Path) -> None:
    version, places = find(V1, v1)
    assert version == 1
    assert places == {"cpu": v1 / "cpu", "memory": v1 / "memory" / "machine", "pids": v1 / "pids"}
    groups = Groups(v1, V1)
    files = groups.make(7, Limits(cpu=0.5, memory_bytes=1 << 30))
    base = f"dataflower-{os.getpid()}"
    assert set(files) == {
        str(v1 / "cpu" / base / "c7" / "cgroup.procs"),
        str(v1 / "memory" / "machine" / base / "c7" / "cgroup.procs"),
        str(v1 / "pids" / base / "c7" / "cgroup.procs"),
    }
    assert (v1 / "cpu" / base / "c7" / "cpu.cfs_quota_us").read_text() == "10000"
    assert (v1 / "memory" / "machine" / base / "c7" / "memory.limit_in_bytes").read_text() == str(1 << 30)
    assert (v1 / "pids" / base / "c7" / "pids.max").read_text() == str(MOST_PROCESSES)
    assert list((v1 / "memory" / "machine" / "own").iterdir()) == []


def test_a_container_without_limits_is_only_counted(v1: Path) -> None:
    groups = Groups(v1, V1)
    assert [Path(file).parts[-4] for file in groups.make(1, Limits())] == ["pids"]


@pytest.mark.parametrize(("fixture", "membership"), [("v1", V1), ("v2", V2)])
def test_reserved_groups_become_a_containers_and_are_limited_then(
    fixture: str, membership: str, request: pytest.FixtureRequest
) -> None:
    groups = Groups(request.getfixturevalue(fixture), membership)
    reserved = groups.reserve()
    assert reserved.files
    folders = [Path(file).parent for file in reserved.files]
    assert all(list(folder.iterdir()) == [] for folder in folders)
    assert groups.adopt(7, Limits(cpu=0.5, memory_bytes=4096), reserved) == reserved.files
    written = {file.name: file.read_text() for folder in folders for file in folder.iterdir()}
    assert "4096" in written.values()
    assert written["pids.max"] == str(MOST_PROCESSES)
    assert groups.reserve().files != reserved.files


def test_groups_that_nobody_is_to_have_are_removed(v1: Path) -> None:
    groups = Groups(v1, V1)
    reserved = groups.reserve()
    groups.give_back(reserved)
    assert not any(Path(file).parent.exists() for file in reserved.files)


def test_v2_uses_what_the_parent_hands_down(v2: Path) -> None:
    slice_ = v2 / "user.slice" / "app.slice"
    assert find(V2, v2) == (2, {"": slice_})
    groups = Groups(v2, V2)
    (file,) = groups.make(3, Limits(cpu=2.0, memory_bytes=4096))
    made = slice_ / f"dataflower-{os.getpid()}" / "c3"
    assert file == str(made / "cgroup.procs")
    assert (made / "cpu.max").read_text() == "45000 20000"
    assert (made / "memory.max").read_text() == "4096"


def test_v2_without_controllers_from_above_makes_none(v2: Path) -> None:
    (v2 / "user.slice" / "app.slice" / "cgroup.subtree_control").write_text("")
    groups = Groups(v2, V2)
    assert groups.make(1, Limits(cpu=1.0)) == ()
    assert groups.why_not


def test_v2_keeps_the_limits_of_the_controllers_that_are_handed_down(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real hierarchy has no file for a controller that is lacking, and answers EACCES to whoever would make it."""
    write = Path.write_text

    def kernel(file: Path, *args: Any, **kwargs: Any) -> int:
        if file.name == "pids.max":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return write(file, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", kernel)
    groups = Groups(v2, V2)
    (file,) = groups.make(3, Limits(memory_bytes=4096))
    assert (Path(file).parent / "memory.max").read_text() == "4096"
    assert not groups.why_not


def test_what_can_not_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "pids" / f"dataflower-{os.getpid()}").write_text("in the way")
    groups = Groups(tmp_path, "3:pids:/\n")
    assert groups.make(1, Limits()) == ()
    assert "exists" in groups.why_not


def test_folders_are_removed_when_they_are_empty_and_those_of_dead_servers_at_the_next_start(v1: Path) -> None:
    dead = folder(v1 / "pids" / "dataflower-4194305" / "c1").parent
    groups = Groups(v1, "3:pids:/\n")
    assert not dead.exists()
    (file,) = groups.make(1, Limits())
    made = Path(file).parent
    groups.remove(1)
    assert made.exists()  # on a real hierarchy the files are no obstacle; here something still dies in it
    (made / "pids.max").unlink()
    groups.remove(99)
    assert not made.exists()
    groups.close()
    assert list((v1 / "pids").iterdir()) == []
