"""Memory of this container that nobody reads any more: taken back from the host's messages and from the board."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dataflower.channel.arena import Arena
from dataflower.channel.board import BoardWriter
from dataflower.container.stream import refs_of
from dataflower.wire import Value


class Returns:
    """Slots on their way back into the arena. Thread-safe."""

    def __init__(self, container: int, arena: Arena, board: BoardWriter | None) -> None:
        self._container = container
        self._arena = arena
        self._board = board
        self._heard: frozenset[int] = frozenset()
        """Own arenas that the host has named: it has heard that they were made."""

    def said(self, slots: Iterable[tuple[int, int]]) -> None:
        """The host says that nobody reads these any more. Raises ValueError for what no receiver has."""
        self._heard = self._heard.union([arena for arena, _ in slots])
        self._arena.release(slots)

    def look(self) -> None:
        """A task begins: take what the host has left on the board while there was none. Raises as `said`."""
        if self._board is not None and self._board.has_returns:
            self.said(self._board.take_returns())

    def are_known(self, outputs: Mapping[str, Value]) -> bool:
        """Whether the host has heard of all memory of this container that these name."""
        for value in outputs.values():
            if value.tensors or value.spilled is not None:
                for ref in refs_of(value):
                    if ref.arena >> 16 == self._container and ref.arena not in self._heard:
                        return False
        return True
