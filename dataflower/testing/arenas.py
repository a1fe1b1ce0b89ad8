"""Slots of an arena for tests that must not hang where there is no room."""

from __future__ import annotations

from dataflower.channel.arena import Arena, Slot
from dataflower.errors import Code, DataflowerError, WouldBlock


def take(arena: Arena, nbytes: int) -> Slot:
    """As `arena.allocate`, but WouldBlock where that would wait."""
    try:
        return arena.allocate(nbytes, cancelled=lambda released: True)
    except DataflowerError as error:
        if error.code is not Code.CANCELLED:
            raise
        raise WouldBlock(f"the arena is full ({arena.used_bytes} bytes in use)") from None
