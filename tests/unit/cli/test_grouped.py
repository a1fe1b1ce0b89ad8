"""A dataclass of options on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer
from typer.testing import CliRunner

from dataflower.cli.grouped import grouped


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="Of the picture.")] = 3
    label: Annotated[list[str], typer.Option(metavar="WORD", help="Below it.")] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    dark: Annotated[bool, typer.Option("--dark")] = False


def app() -> typer.Typer:
    made = typer.Typer(add_completion=False, rich_markup_mode=None)

    @made.command()
    @grouped
    def draw(what: str, size: Size, *, twice: Annotated[bool, typer.Option("--twice")] = False, look: Look) -> None:
        """Draw it."""
        print(what, size, twice, look)

    return made


def test_fields_are_options_and_come_back_together() -> None:
    found = CliRunner().invoke(app(), ["cat", "--width", "7", "--label", "a", "--label", "b", "--dark"])
    assert found.output == "cat Size(width=7, label=['a', 'b']) False Look(dark=True)\n"


def test_fields_have_their_defaults() -> None:
    assert CliRunner().invoke(app(), ["cat"]).output == "cat Size(width=3, label=[]) False Look(dark=False)\n"


def test_help_shows_each_field() -> None:
    text = CliRunner().invoke(app(), ["--help"]).output
    assert "Draw it." in text
    assert "Of the picture." in text
    assert text.index("--width") < text.index("--twice") < text.index("--dark")
