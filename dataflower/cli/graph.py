"""`dataflower graph`: a workflow as a picture."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from dataflower.cli.options import CodePath, Profile
from dataflower.cli.terminal import terminal
from dataflower.errors import InvalidArgument


class Picture(enum.StrEnum):
    """What to draw with."""

    MERMAID = "mermaid"
    SVG = "svg"


File = Annotated[Path, typer.Argument(metavar="FILE", help="Workflow file.", show_default=False)]
Kind = Annotated[
    Picture | None,
    typer.Option("-f", "--format", help="What to write; else by the name of --out.", show_default="mermaid"),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write there instead of to the terminal.")]


def graph(
    file: File,
    format_: Kind = None,
    out: Out = None,
    profile: Profile = None,
    code_path: CodePath = None,
) -> None:
    """Draw a workflow as Mermaid text or SVG: fan-outs, streams (thick), branches (dashed).

    Example: dataflower graph workflows/video.yaml --out video.svg
    """
    from dataflower.config.sources import load_file
    from dataflower.spec.draw import mermaid, svg

    workflow = load_file(file, profile=profile, code_path=code_path or [])
    chosen = format_ or (Picture.SVG if out is not None and out.suffix == ".svg" else Picture.MERMAID)
    text = svg(workflow) if chosen is Picture.SVG else mermaid(workflow)
    if out is None:
        print(text, end="")
    else:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InvalidArgument(f"can't write {str(out)!r}: {error.strerror} (--out names the file)") from None
        terminal().note(f"wrote {out}")


command = graph
