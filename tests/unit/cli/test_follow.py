"""Logs: which lines are shown, and what `-f` adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataflower.cli.follow import appended
from dataflower.cli.group import app
from dataflower.host.logs import stage_log


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for stage, text in (("load", "a\nb\n"), ("inner/count", "1\n2\n3\n")):
        path = stage_log(tmp_path / "logs", "words", stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def logs(state: Path, *args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["logs", *args, "--state-dir", str(state)])
    return result.exit_code, result.stdout, result.stderr


def test_all_stages_each_line_with_its_stage(state: Path) -> None:
    _, text, _ = logs(state, "words")
    assert text.splitlines() == [
        "inner/count | 1",
        "inner/count | 2",
        "inner/count | 3",
        "load        | a",
        "load        | b",
    ]


def test_one_stage_and_its_last_line(state: Path) -> None:
    assert logs(state, "words", "--stage", "inner/count", "-n", "1")[1] == "3\n"


def test_what_is_not_there_says_what_is(state: Path) -> None:
    code, _, text = logs(state, "words", "--stage", "nothing")
    assert code == 1
    assert "there is inner/count, load" in text


def test_an_unknown_workflow_says_where_it_looked(state: Path) -> None:
    code, _, text = logs(state, "nothing")
    assert code == 1
    assert str(state) in text


def test_following_gives_whole_new_lines(tmp_path: Path) -> None:
    path = tmp_path / "s.log"
    path.write_text("old\n")
    new = appended([path])
    follow = _next_after(new, lambda: _append(path, "ne"), lambda: _append(path, "w\nnext\n"))
    assert follow == (path, "new")
    assert next(new) == (path, "next")
    new.close()


def test_following_goes_on_after_rotation(tmp_path: Path) -> None:
    path = tmp_path / "s.log"
    path.write_text("old\n")
    new = appended([path])

    def rotate() -> None:
        path.rename(tmp_path / "s.log.1")
        path.write_text("fresh\n")

    assert _next_after(new, rotate) == (path, "fresh")
    new.close()


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _next_after(lines: object, *changes: object) -> tuple[Path, str]:
    """The next line, while a thread makes the changes as soon as the follower waits."""
    import threading

    found: list[tuple[Path, str]] = []
    reader = threading.Thread(target=lambda: found.append(next(lines)), daemon=True)  # type: ignore[call-overload]
    started = threading.Event()
    import dataflower.cli.follow as module

    original = module.os.read

    def read(descriptor: int, size: int) -> bytes:
        started.set()
        return original(descriptor, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.os, "read", read)
        reader.start()
        assert started.wait(60)
        for change in changes:
            change()  # type: ignore[operator]
        reader.join(60)
    return found[0]


def test_a_state_directory_that_is_not_on_this_machine_is_said_so(tmp_path: Path) -> None:
    code, _, text = logs(tmp_path / "gone", "words")
    assert code == 1
    assert f"no folder '{tmp_path}/gone' on this machine: logs lie on the server's" in text
