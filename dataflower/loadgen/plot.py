"""Plots as inline SVG: axes, lines, bars. Colours are CSS variables of the page, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """Values `low` to `high` on pixels `start` to `end`; `log` needs `low` above 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value, held within the axis."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values to write beside it."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            digits = (1, 2, 5) if last - first <= 3 else (1,)
            found = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        else:
            step = _step((self.high - self.low) / wanted)
            found = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]
        return [value for value in found if self.low <= value <= self.high * (1 + 1e-9)]


def _step(rough: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))


def span(values: Iterable[float | None], *, least: float = 1.0) -> tuple[float, float]:
    """From 0 to a little above the largest."""
    return 0.0, max([least, *(v for v in values if v is not None)]) * 1.05


class Plot:
    """One picture under construction; `svg()` gives it. `x` and `y` may be replaced for panels of one picture."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self._width, self._height, self._title = width, height, title
        self._parts: list[str] = []

    def frame(
        self, x: Axis, y: Axis, *, x_title: str = "", y_title: str = "", y_text: Callable[[float], str] | None = None
    ) -> None:
        """Axes and labels; `y.start` is the bottom. Without `y_text` the y axis says nothing."""
        if y_text is not None:
            for value in y.ticks(4):
                at = y.at(value)
                self.line([(x.start, at), (x.end, at)], "grid")
                self.text(x.start - 6, at + 4, y_text(value), "tick end")
        for value in x.ticks():
            at = x.at(value)
            self.line([(at, y.start), (at, y.start + 4)], "axis")
            if x_title:
                self.text(at, y.start + 17, number(value), "tick middle")
        self.line([(x.start, y.start), (x.end, y.start)], "axis")
        if x_title:
            self.text((x.start + x.end) / 2, y.start + 33, x_title, "label middle")
        if y_title:
            self.text(x.start, y.end - 8, y_title, "label")

    def curve(self, x: Axis, y: Axis, points: Points, name: str, hint: str = "") -> None:
        """A line through values."""
        self.line([(x.at(a), y.at(b)) for a, b in points], f"curve {name}", hint)

    def line(self, pixels: Points, name: str, hint: str = "") -> None:
        """A line through pixels; `name` is its CSS class."""
        if len(pixels) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in pixels)
            self._parts.append(f'<polyline class="{name}" points="{path}">{_hint(hint)}</polyline>')

    def bar(self, left: float, top: float, width: float, height: float, *, name: str, hint: str = "") -> None:
        """A rectangle in pixels."""
        if width > 0 and height > 0:
            place = f'x="{left:.1f}" y="{top:.1f}" width="{max(width, 0.6):.1f}" height="{height:.1f}"'
            self._parts.append(f'<rect class="{name}" {place}>{_hint(hint)}</rect>')

    def text(self, x: float, y: float, text: str, name: str = "") -> None:
        """Words at a pixel."""
        self._parts.append(f'<text class="{name}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>')

    def svg(self) -> str:
        """The picture; it shrinks with the page."""
        title = escape(self._title)
        head = f'<svg viewBox="0 0 {self._width:g} {self._height:g}" role="img" aria-label="{title}">'
        return f"{head}<title>{title}</title>{''.join(self._parts)}</svg>"


def _hint(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def number(value: float) -> str:
    """Short, without a power of ten below a million."""
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """HTML: (CSS class, words) each."""
    items = "".join(f'<span><i class="key {name}"></i>{escape(words)}</span>' for name, words in entries)
    return f'<p class="legend">{items}</p>'
