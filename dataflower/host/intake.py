"""Large inputs on their way into shared memory: copied by another thread than the loop's, which other calls need."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from dataflower.channel.tensor import Uncopied, copy_into
from dataflower.host.values import Border
from dataflower.wire import Value

COPIED_BYTES = 4 << 20
"""Smaller arrays are copied at once: it takes a millisecond, and to ask another thread a tenth of that."""


class Intake:
    """Of one host, on its loop."""

    def __init__(self, border: Border) -> None:
        self._border = border
        self._copying: set[asyncio.Future[None]] = set()

    async def bring(self, workflow: str, values: Mapping[str, Any]) -> dict[str, Value]:
        """`Border.pack`; who awaits it may not write to arrays among the values until it is through.

        Others get their turn only if something large is to be copied. Cancelled, it leaves nothing allocated.
        """
        uncopied = Uncopied(COPIED_BYTES, anywhere=True)
        packed = self._border.pack(workflow, values, uncopied)
        if not uncopied.arrays:
            return packed
        copying = asyncio.get_running_loop().run_in_executor(None, _copy, uncopied)
        self._copying.add(copying)
        copying.add_done_callback(self._copying.discard)
        try:
            await asyncio.shield(copying)
        except BaseException:
            copying.add_done_callback(lambda _: self._border.release(packed))  # the thread writes there until then
            raise
        return packed

    async def close(self) -> None:
        """Return when nothing is being copied."""
        while self._copying:
            await asyncio.wait(self._copying)


def _copy(uncopied: Uncopied) -> None:
    for slot, array in uncopied.arrays:
        copy_into(slot, array)
