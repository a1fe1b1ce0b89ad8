"""The frame of the command line: help, lazy verbs, errors and exit codes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import dataflower
from dataflower import cli
from dataflower.cli import version as version_module
from dataflower.cli.group import VERBS, app
from dataflower.errors import Code, Failure, InvocationFailed, NotFound, Problem, ResourceExhausted, WorkflowInvalid


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception, *args: str) -> tuple[int, str]:
    def emit(*_: object) -> None:
        raise error

    monkeypatch.setattr(version_module, "emit", emit)
    result = CliRunner().invoke(app, ["version", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def test_help_names_every_verb() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f"  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_the_common_options(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"dataflower {verb}" in result.stdout.replace("\n", " ")
    assert "Example" in result.stdout
    for option in ("--quiet", "--no-color", "--debug"):
        assert option in result.stdout


def test_importing_the_frame_imports_nothing_heavy() -> None:
    heavy = "{'grpc', 'torch', 'numpy', 'rich.console', 'pydantic', 'asyncio', 'ruamel'}"
    code = f"import sys, dataflower.cli.group; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version_is_that_of_the_package() -> None:
    data = json.loads(CliRunner().invoke(app, ["version", "-o", "json"]).stdout)
    assert data["dataflower"] == dataflower.__version__
    kind = {"plain": "", "compiled": " (compiled)"}[data["modules"]]
    assert CliRunner().invoke(app, ["version"]).stdout == f"dataflower {dataflower.__version__}{kind}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["versoin"], "no command 'versoin' (did you mean 'version'?)"),
        (["version", "-o", "xml"], "'-o' / '--output': 'xml' is not one of 'table', 'json', 'yaml'"),
        (["ls", "--server", ""], "--server: expected HOST:PORT, such as 127.0.0.1:8001, or unix:/path, not ''"),
        (["ls", "--server", "127.0.0.1:here"], "not '127.0.0.1:here'"),
        (["ls", "--server", "127.0.0.1:80010"], "not '127.0.0.1:80010'"),
        (["ls", "--server", "http://127.0.0.1:8000"], "without http://"),
        (["rm"], "WORKFLOW"),
    ],
)
def test_wrong_usage_ends_with_2(args: list[str], message: str) -> None:
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_problems_of_a_file_are_printed_as_compilers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = (
        Problem("w.yaml", 3, 5, "unknown key 'stagse'", "did you mean 'stages'?"),
        Problem("w.yaml", 9, 1, "no"),
    )
    code, text = fail_with(monkeypatch, WorkflowInvalid(problems))
    assert code == 1
    assert text == "w.yaml:3:5: unknown key 'stagse' (did you mean 'stages'?)\nw.yaml:9:1: no\n"


def test_errors_have_their_code_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fail_with(monkeypatch, NotFound("no workflow 'x'")) == (1, "error: no workflow 'x' [NOT_FOUND]\n")


def test_a_refusal_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = fail_with(monkeypatch, ResourceExhausted("full", retry_after_s=2.0))
    assert "try again in 2.0 s" in text


def test_a_failed_invocation_shows_the_traceback_of_user_code(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure(Code.INTERNAL, "ValueError", "bad", "detect", 2, "Traceback ...\n  user line\n")
    _, text = fail_with(monkeypatch, InvocationFailed(failure))
    assert "ValueError in stage 'detect' (attempt 2): bad" in text
    assert "  user line" in text


def test_debug_lets_the_exception_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        fail_with(monkeypatch, NotFound("x"), "--debug")


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = fail_with(monkeypatch, FileNotFoundError(2, "No such file or directory", "w.yaml"))
    assert (code, text) == (1, "error: can't use 'w.yaml': No such file or directory\n")


@pytest.mark.parametrize("verb", ["config", "doctor", "version"])
def test_yaml_says_what_json_says(verb: str) -> None:
    from ruamel.yaml import YAML

    found = {}
    for form in ("json", "yaml"):
        result = CliRunner().invoke(app, [verb, "-o", form])
        assert result.exit_code == 0, result.output
        found[form] = json.loads(result.stdout) if form == "json" else YAML(typ="safe", pure=True).load(result.stdout)
    if verb == "doctor":  # it measures, too
        found = {form: [line["name"] for line in lines] for form, lines in found.items()}
    assert found["json"] == found["yaml"]


@pytest.mark.parametrize("args", [["schema"], ["config"], ["config", "-o", "yaml"]], ids=" ".join)
def test_a_full_disk_is_said_in_a_line(args: list[str]) -> None:
    command = [sys.executable, "-m", "dataflower.cli", *args]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: can't write the output: No space left on device\n")


def test_an_interrupt_while_verbs_are_imported_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "dataflower.cli.group", SimpleNamespace(app=interrupted))
    monkeypatch.setattr(sys, "argv", ["dataflower", "ls"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_verb_of_its_own_module_can_be_found() -> None:
    for verb in VERBS:
        assert callable(getattr(importlib.import_module(f"dataflower.cli.{verb}"), verb))
