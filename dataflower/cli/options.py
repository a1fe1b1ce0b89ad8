"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dataflower.cli.terminal import Format

Output = Annotated[Format, typer.Option("-o", "--output", help="Output format.")]
Server = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="HOST:PORT", help="Server to talk to (or DATAFLOWER_SERVER).", show_default="127.0.0.1:8001"
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings to read instead of dataflower.toml.")
]
Profile = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="Profile of the workflow file to lay over it.")
]
Deadline = Annotated[
    str | None, typer.Option("--deadline", metavar="TIME", help="Give up after so long (5, 500ms, 2m).")
]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=VALUE]...", help="Inputs: JSON or a string; @FILE reads a file, @- stdin.", show_default=False
    ),
]


def _folders(given: list[str] | None) -> list[str] | None:
    for place in given or ():
        if not Path(place).expanduser().is_dir():
            raise typer.BadParameter(f"no directory {place!r} to find functions in")
    return given


CodePath = Annotated[
    list[str] | None,
    typer.Option(
        "--code-path",
        metavar="DIR",
        help="Where functions are looked up (repeatable).",
        show_default=".",
        callback=_folders,
    ),
]
