"""`dataflower config`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from dataflower.cli.terminal import Format, emit


def config(
    file: Annotated[
        Path | None, typer.Option("--config", help="File to read instead of dataflower.toml.", show_default=False)
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.TABLE,
) -> None:
    """Print the effective configuration and where each setting comes from.

    Defaults < dataflower.toml (or .yaml) < DATAFLOWER_* variables < flags.

    Example: DATAFLOWER_PORT=9001 dataflower config
    """
    from dataflower.cli.settings import composed
    from dataflower.config.settings import SECRETS

    found = composed(file=file)
    values = {
        name: "(set)" if name in SECRETS and value else _plain(value)
        for name, value in dataclasses.asdict(found.config).items()
    }
    data = {name: {"value": value, "origin": str(found.origins[name])} for name, value in values.items()}

    def table() -> Any:
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in ("setting", "value", "origin"):
            table.add_column(title)
        for name, row in data.items():
            table.add_row(name, str(row["value"]), row["origin"])
        return table

    emit(data, output, table)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
