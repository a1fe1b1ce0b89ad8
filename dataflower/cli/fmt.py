"""`dataflower fmt`: workflow files in one style."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.terminal import terminal
from dataflower.cli.validate import Files

Check = Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 if a file would change.")]


def fmt(files: Files, check: Check = False) -> None:
    """Tidy workflow files in place: indents, spelling of names. Comments and order stay.

    Example: dataflower fmt workflows/*.yaml
    """
    from dataflower.config.text import read_text
    from dataflower.spec.format import format_text

    changed: list[Path] = []
    for file in files:
        text = read_text(file)
        tidied = format_text(text, str(file))
        if tidied == text:
            continue
        changed.append(file)
        if not check:
            file.write_text(tidied, encoding="utf-8")
    for file in changed:
        print(f"{'would tidy' if check else 'tidied'} {file}")
    if not changed:
        terminal().note("nothing to tidy")
    if changed and check:
        raise typer.Exit(ExitCode.FAILED)


command = fmt
