"""`dataflower init`: a small workflow that runs, to change into one's own."""

from __future__ import annotations

import json
import keyword
from pathlib import Path
from typing import Annotated

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.terminal import terminal
from dataflower.errors import InvalidArgument

_WORKFLOW = """\
# yaml-language-server: $schema=./{schema}
# Counts the words of a text, a task for each line, while the lines are still being read.
apiVersion: dataflower/v1
kind: Workflow
metadata:
  name: {name}
inputs:
  text: {{type: string, default: "to be or not to be\\nthat is the question"}}
stages:
  split:
    function: {module}:split
    inputs: {{text: inputs.text}}
  count:
    function: {module}:Count
    inputs: {{line: {{each: split.line}}}}
    params: {{shortest: 2}}
  total:
    function: {module}:total
    inputs: {{counts: {{gather: count.counts}}}}
outputs:
  words: total
"""

_FUNCTIONS = '''\
"""The functions of {name}.yaml."""

from collections import Counter
from collections.abc import Iterator

from dataflower import Json, Stream, Text, function


@function(outputs={{"line": Stream(Text())}})
def split(text: str) -> Iterator[str]:
    """A generator streams: each line is on its way as soon as it is there."""
    yield from text.splitlines()


@function(outputs={{"counts": Json()}})
class Count:
    """A class keeps what it has loaded: `setup` runs once in each container, `__call__` once in each task."""

    def setup(self, shortest: int = 1) -> None:
        self.shortest = shortest

    def __call__(self, line: str) -> dict[str, int]:
        return dict(Counter(word for word in line.lower().split() if len(word) >= self.shortest))


def total(counts: list) -> dict[str, int]:
    """The counts of all lines, in the order of the lines."""
    return dict(sum((Counter(one) for one in counts), Counter()).most_common())
'''

Name = Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the workflow.")]
Folder = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to write.")]


def init(name: Name = "hello", folder: Folder = Path(), force: bool = False) -> None:
    """Write a starter workflow: NAME.yaml, NAME_functions.py, and the schema for editors.

    Example: dataflower init hello && dataflower run hello.yaml
    """
    from dataflower.spec.schema import SCHEMA_FILE, workflow_schema

    stem = name.replace("-", "_")
    if not stem.isidentifier() or keyword.iskeyword(stem) or not stem.isascii():
        raise typer.BadParameter(f"{name!r} is not a name: letters, digits, - and _", param_hint="NAME")
    module = f"{stem}_functions"
    files = {
        folder / f"{name}.yaml": _WORKFLOW.format(name=name, module=module, schema=SCHEMA_FILE),
        folder / f"{module}.py": _FUNCTIONS.format(name=name),
    }
    there = [str(path) for path in files if path.exists()]
    if there and not force:
        terminal().error(f"{', '.join(there)} is there already (--force overwrites)")
        raise typer.Exit(ExitCode.FAILED)
    files[folder / SCHEMA_FILE] = json.dumps(workflow_schema(), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    except OSError as error:
        raise InvalidArgument(f"can't write to {str(folder)!r}: {error.strerror} (--dir names the folder)") from None
    terminal().note(f"next: dataflower run {folder / f'{name}.yaml'}")


command = init
