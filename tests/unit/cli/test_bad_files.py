"""Files that are no text, or are not there: every verb says the same, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dataflower.cli.group import app

VERBS = (
    ("validate",),
    ("graph",),
    ("run",),
    ("fmt",),
    ("apply", "--server", "127.0.0.1:1"),
    ("serve", "--port", "0", "--workflow"),
)


def call(*args: str) -> Result:
    return CliRunner().invoke(app, args)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    ("data", "place", "hint"),
    [
        (b"name: caf\xe9\n", "1:10", "byte 0xe9: save it as UTF-8"),
        ("kind: é\nname: caf".encode() + b"\xe9", "2:10", "byte 0xe9: save it as UTF-8"),
        ("name: x\n".encode("utf-16"), "1:1", "it looks like UTF-16: save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_text_has_its_place(verb: tuple[str, ...], data: bytes, place: str, hint: str) -> None:
    Path("bin.yaml").write_bytes(data)
    result = call(*verb, "bin.yaml")
    assert (result.exit_code, result.output) == (1, f"bin.yaml:{place}: not UTF-8 text ({hint})\n")


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_file_that_is_not_there_is_named_in_one_way(verb: tuple[str, ...]) -> None:
    result = call(*verb, "none.yaml")
    assert (result.exit_code, result.output) == (1, "error: no file 'none.yaml' [NOT_FOUND]\n")
    Path("folder.yaml").mkdir()
    result = call(*verb, "folder.yaml")
    assert (result.exit_code, result.output) == (1, "error: no file 'folder.yaml' (it is a directory) [NOT_FOUND]\n")


@pytest.mark.parametrize("name", ["settings.toml", "settings.yaml"])
def test_settings_that_are_no_text_have_their_place(name: str) -> None:
    Path(name).write_bytes(b"port = \xff")
    result = call("config", "--config", name)
    assert result.exit_code == 1
    assert f"{name}:1:8: not UTF-8 text" in result.stderr


def test_a_byte_order_mark_is_no_matter() -> None:
    Path("settings.toml").write_text("port = 9001\n", encoding="utf-8-sig")
    assert "9001" in call("config", "--config", "settings.toml").stdout


def test_a_picture_that_can_not_be_written_names_the_option() -> None:
    assert call("init", "hello").exit_code == 0
    result = call("graph", "hello.yaml", "--out", "nowhere/x.svg")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: can't write 'nowhere/x.svg': No such file or directory (--out")


@pytest.mark.parametrize("verb", [("run",), ("profile",), ("plan", "--rate", "1")], ids=lambda verb: verb[0])
def test_a_variable_that_sets_nothing_is_named_whatever_comes_of_the_rest(
    verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAFLOWER_CPU", "1")
    result = call(*verb, "none.yaml")
    note = "note: DATAFLOWER_CPU is set, and sets nothing (did you mean 'DATAFLOWER_CPUS'?)\n"
    assert result.stderr == note + "error: no file 'none.yaml' [NOT_FOUND]\n"
