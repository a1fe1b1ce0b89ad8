"""Views of inputs that outlive their task: the host is told of each, and again when it is gone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable

from dataflower.channel.views import Views
from dataflower.wire import FromContainer, Unheld

Slots = tuple[tuple[int, int], ...]


class LateViews:
    """Keeps the order of what is said about slots of which views live. Thread-safe.

    Has a thread of its own, started when it is first needed.
    """

    def __init__(self, send: Callable[[FromContainer], None]) -> None:
        """`send` tells the host."""
        self._send = send
        self._unheld: queue.SimpleQueue[Slots] = queue.SimpleQueue()
        self._lock = threading.Lock()
        """Guards `_declared` and the order of what is said."""
        self._declared: set[tuple[int, int]] = set()
        """Slots that the host was told are held, until `Unheld` is sent."""
        self._worker: threading.Thread | None = None

    def unheld(self, slots: Slots) -> None:
        """These have no live views any more; called by `Views`, perhaps in the middle of a garbage collection."""
        self._unheld.put(slots)

    def declare(
        self, views: Views, slots: Iterable[tuple[int, int]], message: Callable[[Slots], FromContainer]
    ) -> None:
        """Send a message that names those slots of which views live, each once until it is `Unheld`."""
        with self._lock:
            held = views.held(slots, watch=False)
            fresh = tuple(slot for slot in held if slot not in self._declared) if held else ()
            self._send(message(fresh))
            if not fresh:
                return
            self._declared.update(fresh)
            views.watch(fresh)
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._say_unheld, args=(views,), name="data-unit-unheld", daemon=True
                )
                self._worker.start()

    def _say_unheld(self, views: Views) -> None:
        while True:
            slots = self._unheld.get()
            with self._lock:
                live = views.held(slots, watch=False)  # a later task may have brought a new view meanwhile
                views.watch(live)
                gone = tuple(slot for slot in slots if slot in self._declared and slot not in live)
                self._declared.difference_update(gone)
                if gone:
                    self._send(Unheld(gone))
