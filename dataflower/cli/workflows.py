"""Reading workflow files for the verbs that need one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataflower.config.settings import Config
    from dataflower.spec.workflow import Workflow


def load_file(file: Path, config: Config, profile: str | None = None) -> tuple[Workflow, str]:
    """A workflow and its YAML, which says it all: a file that includes others or is overlaid is written anew.

    Raises:
        WorkflowInvalid: with everything that is wrong with the file.
        NotFound: there is no such file.
    """
    text = read_file(file)
    workflow = loader(config, profile)(text, str(file))
    return workflow, text if profile is None and not includes_others(text, str(file)) else written(workflow)


def read_file(file: Path) -> str:
    """The text of a workflow file; `-` is stdin."""
    from dataflower.config.text import decoded, read_text

    if str(file) == "-":
        import sys

        return decoded(sys.stdin.buffer.read(), "<stdin>")
    return read_text(file)


def loader(config: Config, profile: str | None = None, option: str = "--code-path") -> Callable[[str, str], Workflow]:
    """Turns YAML and its file name into a workflow, finding functions on the code path, which `option` extends."""
    from dataflower.config.convert import resolved_code_path
    from dataflower.config.sources import file_reader, searched, source_finder
    from dataflower.spec.load import load

    places = resolved_code_path(config)
    find_source, hint = source_finder(places), searched(places, option)

    def read(text: str, file: str) -> Workflow:
        return load(text, file=file, read=file_reader, find_source=find_source, profile=profile, searched=hint)

    return read


def beside(config: Config, files: Iterable[Path]) -> Config:
    """With the folders of workflow files at the end of the code path: functions may lie beside them."""
    folders = (str(file.parent) for file in files if str(file) != "-")
    return dataclasses.replace(config, code_path=tuple(dict.fromkeys((*config.code_path, *folders))))


def includes_others(text: str, file: str) -> bool:
    """Whether a stage is a workflow file of its own."""
    from dataflower.spec.tree import parse

    data = parse(text, file).data
    stages = data.get("stages") if isinstance(data, dict) else None
    return isinstance(stages, dict) and any(isinstance(s, dict) and "workflow" in s for s in stages.values())


def written(workflow: Workflow) -> str:
    """A workflow as YAML."""
    from dataflower.spec.dump import dump

    return dump(workflow)
