"""`dataflower graph`: a workflow as a picture."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dataflower.cli.options import CodePath, Profile
from dataflower.cli.terminal import terminal
from dataflower.errors import FailedPrecondition, InvalidArgument


class Picture(enum.StrEnum):
    """What to draw with."""

    MERMAID = "mermaid"
    SVG = "svg"
    PNG = "png"


_OF_TEXT = ("", ".mmd", ".md", ".txt")

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
    """Draw a workflow, from inputs to outputs: as Mermaid text, or as a picture (SVG, PNG) with its functions.

    Lines tell how a stage reads: a value, a stream, each item, the gathered items; branches are dotted.

    Example: dataflower graph workflows/video.yaml --out video.svg
    """
    from dataflower.config.sources import load_file
    from dataflower.spec.draw import mermaid
    from dataflower.spec.svg import svg

    chosen = format_ or _by_name(out)
    if chosen is Picture.PNG and out is None and sys.stdout.isatty():
        raise InvalidArgument("a PNG is nothing for a terminal (--out names a file)")
    workflow = load_file(file, profile=profile, code_path=code_path or [])
    if chosen is Picture.PNG:
        data = png(svg(workflow))
    else:
        data = (svg(workflow) if chosen is Picture.SVG else mermaid(workflow)).encode()
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        out.write_bytes(data)
    except OSError as error:
        raise InvalidArgument(f"can't write {str(out)!r}: {error.strerror} (--out names the file)") from None
    terminal().note(f"wrote {out}")


def _by_name(out: Path | None) -> Picture:
    ending = "" if out is None else out.suffix.lower()
    if ending in _OF_TEXT:
        return Picture.MERMAID
    try:
        return Picture(ending.removeprefix("."))
    except ValueError:
        raise InvalidArgument(f"--out: {str(out)!r} is no .svg, .png or .mmd (-f says what to write)") from None


def png(document: str) -> bytes:
    """An SVG document as a PNG, at twice its size.

    Raises:
        FailedPrecondition: there is nothing here to draw with, or no font.
    """
    try:
        import resvg_py
    except ImportError:
        raise FailedPrecondition("a PNG needs the package resvg-py: pip install 'dataflower[graph]'") from None
    if not _can_write(resvg_py.svg_to_bytes):
        raise FailedPrecondition("a PNG needs a font on this machine: apt-get install fonts-dejavu-core (SVG does not)")
    return bytes(resvg_py.svg_to_bytes(svg_string=document, zoom=2, font_family="DejaVu Sans"))


def _can_write(render: Callable[..., bytes]) -> bool:
    """Without a font letters are left out in silence: found out with one."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">{}</svg>'
    letter = '<text y="16" font-family="DejaVu Sans, sans-serif">M</text>'
    blank, written = (bytes(render(svg_string=empty.format(text))) for text in ("", letter))
    return blank != written


command = graph
