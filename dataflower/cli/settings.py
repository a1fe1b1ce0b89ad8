"""The settings that a verb works with, and what a person should know of how they came to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflower.cli.terminal import terminal

if TYPE_CHECKING:
    from dataflower.config.settings import Composed


def composed(flags: Mapping[str, Any] | None = None, file: Path | None = None) -> Composed:
    """As `config.compose.compose`; says which variables set nothing, so call it once in a verb."""
    from dataflower.config.compose import compose

    made = compose(flags, file=file)
    for note in made.notes:
        terminal().note(f"note: {note}")
    return made
