"""What one sees while a workflow runs: stream outputs as they come, and below them what the stages are doing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dataflower.cli.terminal import Terminal
from dataflower.cli.values import text
from dataflower.host.api import OutputItem, StageStatus

_REFRESH_PER_S = 8
_ROWS = 12
"""Stages shown at a time: those with the most to do."""


class Screen:
    """Shows items of stream outputs and the state of stages; a context manager.

    On a terminal the items scroll by above a live table. Into a pipe they are written as they come, and the table
    goes to stderr if that is a terminal. Items that are text are joined, as the tokens of a sentence are.
    """

    def __init__(self, live: Console | None, out: TextIO | None) -> None:
        """`out` None: items are printed above the live table of `live`."""
        self._out = out
        self._port = ""
        self._line = ""
        self._stages: tuple[StageStatus, ...] = ()
        self._spinner = Spinner("dots", "running ...", style="dim")
        self._live: Live | None = None
        if live is not None:
            self._live = Live(
                console=live,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                refresh_per_second=_REFRESH_PER_S,
                get_renderable=self._render,
            )

    @property
    def is_live(self) -> bool:
        """Whether somebody watches the stages."""
        return self._live is not None

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def stages(self, stages: Iterable[StageStatus]) -> None:
        """Show this state of the stages from now on."""
        self._stages = tuple(stages)

    def note(self, message: str) -> None:
        """Say something that is no result."""
        if self._live is not None:
            self._live.console.print(Text(message, style="dim"))

    def item(self, item: OutputItem) -> None:
        """Show an item of a stream output."""
        if isinstance(item.value, str):
            if item.port != self._port:
                self._end_line()
                self._port = item.port
                self._write(f"{item.port}: ")
            self._write(item.value if self._out is not None else text(item.value))
        else:
            self._end_line()
            self._write(f"{item.port}[{item.index}]: {text(item.value)}\n")

    def _write(self, piece: str) -> None:
        if self._out is not None:
            self._out.write(piece)
            self._out.flush()
            self._line = (self._line + piece).rpartition("\n")[2]
            return
        assert self._live is not None
        *lines, self._line = (self._line + piece).split("\n")
        width = self._live.console.width
        while cell_len(self._line) >= width:
            cut = self._line.rfind(" ", 0, width - 1)
            cut = cut if cut > 0 else width - 1
            lines.append(self._line[:cut])
            self._line = self._line[cut:].lstrip(" ")
        if lines:
            self._live.refresh()  # or the line would stand in the live part too, until its next picture
        for line in lines:
            self._live.console.print(Text(line))

    def _end_line(self) -> None:
        if self._line:
            self._write("\n")
        self._port = ""

    def _render(self) -> RenderableType:
        pending = [Text(self._line)] if self._line and self._out is None else []
        below = stage_table(self._stages) if self._stages else self._spinner
        return Group(*pending, below)


def stage_table(stages: Iterable[StageStatus]) -> RenderableType:
    """A line for each stage that has something to do or has done something."""
    active = [s for s in stages if s.busy or s.queued or s.starting or s.idle or s.done]
    active = sorted(active, key=lambda s: (s.busy, s.queued, s.starting), reverse=True)[:_ROWS]
    shown = [s for s in stages if s in active]
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage")
    counted = any(stage.done for stage in shown)
    for title in ("running", "waiting", "starting", *(("done",) if counted else ())):
        table.add_column(title, justify="right")
    for stage in shown:
        counts = (stage.busy, stage.queued, stage.starting, *((stage.done,) if counted else ()))
        style = "bold" if stage.busy else "dim"
        table.add_row(stage.stage, *(str(n) if n else "-" for n in counts), style=style)
    return table


def screen(terminal: Terminal, *, items: bool = True) -> Screen:
    """The screen that fits the streams of this process; `items` False: they are printed elsewhere, later."""
    out, err = terminal.out(), terminal.err()
    watched = not terminal.quiet and err.is_terminal
    if items and watched and out.is_terminal:
        return Screen(out, None)
    return Screen(err if watched else None, sys.stdout if items else io.StringIO())
