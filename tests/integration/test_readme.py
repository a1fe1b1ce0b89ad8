"""What README shows is true: its YAML loads, its Python imports, its example of an error is the error."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from dataflower.cli.workflows import loader
from dataflower.config.settings import Config
from dataflower.errors import WorkflowInvalid

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_workflow_loads() -> None:
    workflow = loader(Config(code_path=(str(ROOT),)))(block("yaml"), "video.yaml")
    assert list(workflow.stages) == ["decode", "detect", "faces", "join", "summarise", "tell"]


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


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
