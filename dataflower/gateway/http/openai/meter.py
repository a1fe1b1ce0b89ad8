"""What a request of a model costs in time and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflower.gateway.http.openai.answers import Usage
from dataflower.gateway.http.site import Site


class Meter:
    """Watches one request. `began`: CLOCK_MONOTONIC seconds at its arrival."""

    __slots__ = ("_began", "_first", "_last", "_model", "_site")

    def __init__(self, site: Site, model: str, began: float) -> None:
        self._site = site
        self._model = model
        self._began = began
        self._first = 0.0
        self._last = 0.0

    def came(self, item: Mapping[str, Any]) -> None:
        """An item came; the first with tokens in it is the first token."""
        self._last = self._site.clock.monotonic()
        if not self._first and (item.get("tokens") or item.get("text") or item.get("tool_calls")):
            self._first = self._last

    def ended(self, usage: Usage) -> None:
        """It ended well."""
        now = self._site.clock.monotonic()
        decoded = usage.completion - 1
        self._site.metrics.generated(
            self._model,
            prompt=usage.prompt,
            completion=usage.completion,
            cached=usage.cached,
            ttft_s=self._first - self._began if self._first else None,
            tpot_s=(self._last - self._first) / decoded if self._first and decoded > 0 else None,
            duration_s=now - self._began,
        )
