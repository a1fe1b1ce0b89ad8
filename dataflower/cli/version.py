"""`dataflower version`."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from dataflower.cli.compiled import modules, title
from dataflower.cli.terminal import Format, emit


def version(
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.TABLE,
) -> None:
    """Print the version.

    Example: dataflower version -o json
    """
    from dataflower import __version__

    facts = {
        "dataflower": __version__,
        "modules": modules(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    emit(facts, output, title)
