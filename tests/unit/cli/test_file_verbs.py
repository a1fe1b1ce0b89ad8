"""The verbs that work on files alone: validate, graph, init, fmt, schema."""

from __future__ import annotations

import builtins
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from dataflower.cli.group import app
from dataflower.spec.schema import SCHEMA_FILE

BROKEN = """\
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: broken}
inputs: {text: string}
stages:
  shout:
    functoin: talk:shout
    inputs: {text: inputs.txt}
outputs: {out: shuot.out}
"""
SOUND = BROKEN.replace("functoin", "function").replace("inputs.txt", "inputs.text").replace("shuot", "shout")
UNTIDY = """\
apiVersion: dataflower/v1
kind:   Workflow
metadata: {name: untidy}
inputs: {text: string}
stages:
    # says it louder
    shout:
        function: talk:shout
        inputs: {text: inputs.text}
        scaling: {max_inputs: 3}   # at a time
outputs: {out: shout.out}
"""


def call(*args: str) -> Result:
    return CliRunner().invoke(app, args)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("talk.py").write_text("import nowhere\ndef shout(text: str) -> str: ...\n")
    Path("sound.yaml").write_text(SOUND)
    Path("broken.yaml").write_text(BROKEN)


# --- validate ---


def test_a_sound_file_is_said_to_be_fine_and_its_functions_are_not_imported() -> None:
    result = call("validate", "sound.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "sound.yaml: fine\n")
    assert "talk" not in sys.modules


def test_all_problems_of_all_files_come_at_once_each_with_its_place() -> None:
    Path("other.yaml").write_text(SOUND.replace("metadata: {name: broken}", "metadata: {}"))
    result = call("validate", "broken.yaml", "sound.yaml", "other.yaml")
    assert result.exit_code == 1
    places = [line.split(": ")[0] for line in result.stdout.splitlines()]
    assert {"broken.yaml:7:5", "broken.yaml:9:16"} <= set(places)
    assert places[-1].startswith("other.yaml:3:")
    assert "did you mean 'function'?" in result.stdout
    assert "did you mean 'shout'?" in result.stdout


def test_problems_as_data_are_a_list() -> None:
    result = call("validate", "broken.yaml", "missing.yaml", "-o", "json")
    assert result.exit_code == 1
    problems = json.loads(result.stdout)
    assert all(set(problem) == {"file", "line", "column", "message", "hint"} for problem in problems)
    first = problems[0]
    assert (first["file"], first["line"], first["column"]) == ("broken.yaml", 7, 5)
    assert (problems[-1]["file"], problems[-1]["line"]) == ("missing.yaml", 0)
    assert json.loads(call("validate", "sound.yaml", "-o", "json").stdout) == []
    as_yaml = call("validate", "broken.yaml", "-o", "yaml").stdout
    assert YAML(typ="safe", pure=True).load(as_yaml)[0] == first


def test_a_profile_is_checked_too() -> None:
    Path("p.yaml").write_text(SOUND + "profiles:\n  big: {stages: {shuot: {scaling: {max_replicas: 4}}}}\n")
    result = call("validate", "p.yaml")
    assert result.exit_code == 1
    assert "p.yaml:11:" in result.stdout
    assert call("validate", "sound.yaml", "--profile", "big").exit_code == 1


def test_functions_are_found_on_the_code_path() -> None:
    Path("lib").mkdir()
    Path("talk.py").rename("lib/talk.py")
    assert call("validate", "sound.yaml", "--code-path", "lib").exit_code == 0
    assert "talk" in call("validate", "sound.yaml").stdout


# --- graph ---


def test_a_graph_is_not_written_as_what_its_name_does_not_say() -> None:
    result = call("graph", "sound.yaml", "--out", "g.pdf")
    assert (result.exit_code, "'g.pdf' is no .svg, .png or .mmd" in result.stderr) == (1, True)
    assert not Path("g.pdf").exists()
    assert call("graph", "sound.yaml", "--out", "g.pdf", "-f", "svg").exit_code == 0  # who says so gets it


def test_a_graph_is_mermaid_on_stdout_unless_asked_otherwise() -> None:
    assert call("graph", "sound.yaml").stdout.startswith("flowchart LR\n")
    assert ET.fromstring(call("graph", "sound.yaml", "-f", "svg").stdout).tag.endswith("svg")


@pytest.mark.parametrize(
    ("name", "start"), [("g.svg", b"<svg"), ("g.PNG", b"\x89PNG"), ("g.mmd", b"flowchart"), ("g.md", b"flowchart")]
)
def test_the_name_of_the_file_says_what_to_write(name: str, start: bytes) -> None:
    result = call("graph", "sound.yaml", "--out", name)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"wrote {name}\n")
    assert Path(name).read_bytes().startswith(start)


def test_a_png_is_a_picture_of_the_document_at_twice_its_size() -> None:
    call("graph", "sound.yaml", "--out", "g.svg")
    png = CliRunner().invoke(app, ["graph", "sound.yaml", "-f", "png"]).stdout_bytes
    root = ET.fromstring(Path("g.svg").read_text())
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (2 * int(root.attrib["width"]), 2 * int(root.attrib["height"]))


def test_without_its_package_a_png_is_refused_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "resvg_py":
            raise ImportError(name)
        return given(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    result = call("graph", "sound.yaml", "--out", "g.png")
    assert result.exit_code == 1
    assert "pip install 'dataflower[graph]'" in result.stderr
    assert not Path("g.png").exists()


def test_a_font_that_is_missing_is_noticed() -> None:
    from dataflower.cli.graph import _can_write

    assert not _can_write(lambda svg_string: b"always the same")
    assert _can_write(lambda svg_string: svg_string.encode())


def test_a_broken_workflow_is_not_drawn() -> None:
    result = call("graph", "broken.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("broken.yaml:7:5: ")


# --- init ---


def test_init_writes_a_workflow_that_is_valid_and_tidy() -> None:
    result = call("init", "my-flow", "--dir", "new/place")
    assert result.exit_code == 0
    assert sorted(path.name for path in Path("new/place").iterdir()) == [
        SCHEMA_FILE, "my-flow.yaml", "my_flow_functions.py",
    ]  # fmt: skip
    assert "next: dataflower run new/place/my-flow.yaml" in result.stderr
    assert call("validate", "new/place/my-flow.yaml").exit_code == 0
    assert call("fmt", "--check", "new/place/my-flow.yaml").exit_code == 0


def test_init_overwrites_only_what_it_is_told_to() -> None:
    assert call("init").exit_code == 0
    Path("hello.yaml").write_text("mine")
    result = call("init")
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert Path("hello.yaml").read_text() == "mine"
    assert call("init", "--force").exit_code == 0
    assert Path("hello.yaml").read_text() != "mine"


@pytest.mark.parametrize("name", ["a b", "1st", "class", "../up", "grün", "a/b"])
def test_init_takes_only_names(name: str, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    result = call("init", name)
    assert result.exit_code == 2
    assert "is not a name" in result.stderr
    assert set(tmp_path.rglob("*")) == before


# --- fmt ---


def test_fmt_tidies_and_keeps_comments_order_and_meaning() -> None:
    Path("untidy.yaml").write_text(UNTIDY)
    result = call("fmt", "untidy.yaml", "sound.yaml")
    assert (result.exit_code, result.stdout) == (0, "tidied untidy.yaml\n")
    text = Path("untidy.yaml").read_text()
    assert "  # says it louder\n  shout:\n    function:" in text
    assert "max_ongoing_requests: 3" in text
    assert "# at a time" in text
    assert Path("sound.yaml").read_text() == SOUND
    assert call("validate", "untidy.yaml").exit_code == 0
    assert call("fmt", "untidy.yaml").stderr == "nothing to tidy\n"


def test_fmt_check_writes_nothing() -> None:
    Path("untidy.yaml").write_text(UNTIDY)
    result = call("fmt", "--check", "untidy.yaml", "sound.yaml")
    assert (result.exit_code, result.stdout) == (1, "would tidy untidy.yaml\n")
    assert Path("untidy.yaml").read_text() == UNTIDY
    assert call("fmt", "--check", "sound.yaml").exit_code == 0


@pytest.mark.parametrize("text", ["42\n", "[1,2]\n"])
def test_fmt_leaves_what_is_no_workflow_alone(text: str) -> None:
    Path("other.yaml").write_text(text)
    result = call("fmt", "other.yaml")
    assert (result.exit_code, Path("other.yaml").read_text()) == (1, text)
    assert result.stderr.startswith("other.yaml:1:1: a workflow file is a map")


def test_fmt_leaves_what_is_no_yaml_alone() -> None:
    Path("odd.yaml").write_text("stages: [\n")
    result = call("fmt", "odd.yaml")
    assert result.exit_code == 1
    assert result.stderr.startswith("odd.yaml:")
    assert Path("odd.yaml").read_text() == "stages: [\n"


# --- schema ---


def test_the_schema_is_printed_as_init_writes_it() -> None:
    call("init")
    printed = call("schema")
    assert printed.exit_code == 0
    schema = json.loads(printed.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema == json.loads(Path(SCHEMA_FILE).read_text())
    assert Path("hello.yaml").read_text().startswith(f"# yaml-language-server: $schema=./{SCHEMA_FILE}\n")
