"""`run`, with a fake host in place of containers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dataflower.cli import local
from dataflower.cli.group import app
from dataflower.testing.fake_host import FakeHost

YAML = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: greet}
inputs:
  name: string
slo: {e2e_ms: LIMIT}
stages:
  hello:
    function: somewhere:hello
    inputs: {name: inputs.name}
    outputs:
      text: {type: string, stream: true}
      length: int
outputs:
  text: hello.text
  length: hello.length
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(body: Any, *args: str, limit: float | None = 60_000) -> Result:
        file = tmp_path / "greet.yaml"
        slo = "" if limit is None else f"slo: {{e2e_ms: {limit}}}\n"
        file.write_text(YAML.replace("slo: {e2e_ms: LIMIT}\n", slo))

        @asynccontextmanager
        async def open_host(config: Any, load: Any = None) -> AsyncIterator[FakeHost]:
            assert str(tmp_path) in config.code_path
            assert config.state_dir is None
            host = FakeHost({"greet": body})
            yield host
            await host.close()

        monkeypatch.setattr(local, "open_host", open_host)
        return CliRunner().invoke(app, ["run", str(file), *args])

    return run


def hello(name: str) -> Iterator[dict[str, Any]]:
    yield {"text": "Hello "}
    yield {"text": name}


def test_streams_come_as_text_then_timeline_and_verdict(run: Any) -> None:
    result = run(hello, "name=Ada")
    assert result.exit_code == 0
    assert result.stdout == "text: Hello Ada\n"
    assert "ms in all" in result.stderr
    assert "SLO e2e" in result.stderr
    assert "met" in result.stderr


def test_quiet_is_the_result_alone(run: Any) -> None:
    result = run(hello, "name=Ada", "--quiet")
    assert (result.stdout, result.stderr) == ("text: Hello Ada\n", "")


def test_json_has_outputs_and_verdict_and_the_trace_if_asked_for(run: Any) -> None:
    data = json.loads(run(hello, "name=Ada", "-o", "json").stdout)
    assert data["outputs"]["text"] == ["Hello ", "Ada"]
    assert data["slo"]["met"] is True
    assert "trace" not in data
    assert "tasks" in json.loads(run(hello, "name=Ada", "-o", "json", "--trace").stdout)["trace"]


def test_a_missed_slo_is_said_and_fails_only_if_asked_to(run: Any) -> None:
    result = run(hello, "name=Ada", limit=0.0001)
    assert (result.exit_code, "MISSED by" in result.stderr) == (0, True)
    assert run(hello, "name=Ada", "--check-slo", limit=0.0001).exit_code == 3


def test_where_nothing_is_promised_nothing_can_be_checked(run: Any) -> None:
    result = run(hello, "name=Ada", "--check-slo", limit=None)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "workflow 'greet' has no SLO" in result.stderr


def test_a_folder_of_functions_must_be_there(run: Any, tmp_path: Path) -> None:
    assert run(hello, "name=Ada", "--code-path", str(tmp_path)).exit_code == 0
    result = run(hello, "name=Ada", "--code-path", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "to find functions in" in result.stderr


def test_a_failure_ends_with_1_and_without_a_verdict(run: Any) -> None:
    def fail(name: str) -> None:
        raise ValueError(f"no {name}")

    result = run(fail, "name=Ada")
    assert result.exit_code == 1
    assert "ValueError" in result.stderr
    assert "SLO" not in result.stderr


def test_inputs_are_checked_before_anything_starts(run: Any) -> None:
    result = run(hello, "nam=Ada")
    assert result.exit_code == 2
    assert "no input 'nam' (the workflow takes name)" in result.stderr


def test_a_missing_input_is_all_there_is_to_say(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(body: Any) -> None:
        raise AssertionError("a host was opened")

    monkeypatch.setattr(local, "run_loop", started)
    result = run(hello)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: input 'name' of workflow 'greet' is missing; it takes string [INVALID_ARGUMENT]"
    ]


@pytest.mark.parametrize("deadline", ["soon", "0", "0ms", "-5"])
def test_a_deadline_that_is_none_is_wrong_usage(run: Any, deadline: str) -> None:
    result = run(hello, "name=Ada", "--deadline", deadline)
    assert result.exit_code == 2
    assert "--deadline" in result.stderr


@pytest.mark.parametrize("text", ["42", "kind: Workflow", ""])
def test_a_plan_that_is_none_is_named_before_anything_starts(
    run: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(body: Any) -> None:
        raise AssertionError("a host was opened")

    monkeypatch.setattr(local, "run_loop", started)
    (tmp_path / "my plan.yaml").write_text(text)
    result = run(hello, "name=Ada", "--plan", "my plan.yaml")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: my plan.yaml:1:")
    assert "`dataflower init" not in result.stderr


def test_problems_of_the_file_are_all_printed(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("apiVersion: dataflower/v1\nkind: Workflow\nmetadata: {name: x}\nstagse: {}\noutputs: {a: b.c}\n")
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 1
    assert f"{file}:4:1: " in result.stderr
    assert "did you mean 'stages'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml")])
    assert result.exit_code == 1
    assert result.stderr == f"error: no file '{tmp_path}/none.yaml' [NOT_FOUND]\n"
