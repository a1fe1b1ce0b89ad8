"""What README shows is true: its YAML loads, its Python imports, its example of an error is the error."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dataflower.cli.workflows import loader
from dataflower.config.settings import Config
from dataflower.errors import WorkflowInvalid

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(language: str) -> str:
    return blocks(language)[0]


def test_the_workflow_loads() -> None:
    workflow = loader(Config(code_path=(str(ROOT),)))(block("yaml"), "video.yaml")
    assert list(workflow.stages) == ["decode", "detect", "faces", "join", "summarise", "tell"]


def test_the_switch_and_its_merge_load() -> None:
    head = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: triage}
inputs: {message: string}
outputs: {letter: letter.text}
stages:
  sort:
    function: functions.llm:Choose
    inputs: {message: inputs.message}
    params: {labels: [angry, curious], instruction: Sort messages.}
"""
    workflow = loader(Config(code_path=(str(ROOT),)))(head + blocks("yaml")[1], "triage.yaml")
    assert [case.name for case in workflow.stages["route"].cases] == ["complaint", "question"]


def test_the_error_is_what_validate_says() -> None:
    broken = block("yaml").replace("crop: {each: detect.crop}", "crop: {each: detect.crops}")
    with pytest.raises(WorkflowInvalid) as caught:
        loader(Config(code_path=(str(ROOT),)))(broken, "video.yaml")
    assert str(caught.value.problems[0]) in README


def test_the_functions_run() -> None:
    module = ModuleType("readme")
    exec(compile(block("python"), "README.md", "exec"), module.__dict__)
    assert list(module.split("a\nb\nc\n", size=2)) == [{"chunk": "a\nb\n", "lines": 2}, {"chunk": "c\n", "lines": 1}]
    classify = module.Classify()
    classify.setup(["red"])
    assert classify("Red or green") == {"red": 1}


def test_the_client_calls_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "dataflower.cli", "serve", "--port", "0", "--workflow", "workflows/wordcount.yaml"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            calls = next(text for text in blocks("python") if "client.invoke" in text)
            exec(compile(calls.replace("127.0.0.1:8001", address), "README.md", "exec"), {})
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
    words, distinct = (line.split()[-1] for line in capsys.readouterr().out.splitlines())
    assert words.endswith(")]")
    assert int(distinct) > 100
