"""Where a verb prints: results on stdout, everything said to a person on stderr."""

from __future__ import annotations

import enum
import json
import os
import sys
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dataflower.errors import DataflowerError, InvocationFailed, WorkflowInvalid

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Format(enum.StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Terminal:
    """What the common options said. `color` None means: as the stream and NO_COLOR suggest."""

    quiet: bool = False
    color: bool | None = None
    debug: bool = False

    def out(self) -> Console:
        """Console for results."""
        return self._console(stderr=False)

    def err(self) -> Console:
        """Console for progress, notes and errors."""
        return self._console(stderr=True)

    def _console(self, *, stderr: bool) -> Console:
        from rich.console import Console

        return Console(
            stderr=stderr,
            no_color=True if self.color is False else None,
            highlight=False,
            soft_wrap=False,
            emoji=False,
        )

    def note(self, text: str) -> None:
        """Say something that a person may want to know; `--quiet` silences it."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Say what went wrong."""
        print(text, file=sys.stderr, flush=True)


_current: ContextVar[Terminal] = ContextVar("terminal", default=Terminal())  # noqa: B039 - frozen


def terminal() -> Terminal:
    """The terminal of the running command."""
    return _current.get()


def reset() -> None:
    """Forget the options of an earlier command in this process."""
    _current.set(Terminal())


def adjust(**changes: bool) -> None:
    """Note a common option."""
    _current.set(replace(_current.get(), **changes))


def emit(data: Any, format_: Format, table: Any) -> None:
    """Print `data` (plain values) as JSON or YAML, or else what `table()` returns (a rich renderable)."""
    from dataflower.cli.values import plain

    if format_ is Format.JSON:
        print(json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False), flush=True)
    elif format_ is Format.YAML:
        from ruamel.yaml import YAML

        writer = YAML(typ="safe", pure=True)
        writer.default_flow_style = False
        writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        writer.dump(plain(data), sys.stdout)
        sys.stdout.flush()
    else:
        show(table())


def show(renderable: RenderableType, *, err: bool = False) -> None:
    """Print a rich renderable, as wide as the terminal (or 120 columns into a pipe)."""
    console = terminal().err() if err else terminal().out()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as captured:  # columns are padded to their width, which is of no use in a file
        console.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().split("\n")), end="", file=console.file, flush=True)


def describe(error: DataflowerError) -> str:
    """An error as one would want to read it: problems of a file line by line, else `code: message (hint)`."""
    if isinstance(error, WorkflowInvalid):
        return str(error)
    text = f"error: {error.message} [{error.code.value}]"
    if error.retry_after_s is not None:
        text += f" (try again in {error.retry_after_s:.1f} s)"
    if isinstance(error, InvocationFailed) and error.failure.traceback:
        text += "\n" + error.failure.traceback.rstrip()
    return text
