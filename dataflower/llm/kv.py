"""Where keys and values lie: a store of blocks that outlives sequences, and dense rows for those that run.

Matrix products want the keys of a sequence side by side; gathering them out of blocks in every layer of every step
costs as much as the attention itself. So a running sequence has a row, into which its blocks are copied when it
starts, and a block goes to the store when it is full. Running sequences thereby take their memory twice, and nothing
is gathered while they decode. Copies into the store are made behind the steps, by a thread of their own: what they
cost most is pages of the store that nobody has touched before.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from collections.abc import Sequence as Listing
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataflower.llm.blocks import Published

FIRST_ROWS = 2
FIRST_TOKENS = 256
"""Size of the dense part at the start; it doubles as needed."""
_NUMBERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes: numbers that numpy has as well."""
_Plain = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class KvShape:
    """Shape of a model's keys and values: the same in all layers, and for keys as for values."""

    layers: int
    heads: int
    size: int

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one token in all layers."""
        return 2 * self.layers * self.heads * self.size * dtype.itemsize


class KvStore:
    """Keys and values of all layers. Not thread-safe: it belongs to the thread that runs the model."""

    def __init__(self, shape: KvShape, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        """Room for `blocks` blocks; memory is touched only as it is used (on a CPU)."""
        self.shape, self.block_size, self.dtype, self.device = shape, block_size, dtype, device
        one = (shape.layers, 2, shape.heads, block_size, shape.size)
        self._store = _zeros((blocks, *one), dtype, device)
        self.dense = self._allocate(FIRST_ROWS, FIRST_TOKENS)
        """(layers, 2, rows, heads, tokens, size); [:, 0] are keys, [:, 1] values. Never NaN where nothing was written.
        """
        self._row_of: dict[int, int] = {}
        self._filled: list[int] = []
        """Tokens in each row; rows are used from 0 on, without holes."""
        self._owner: list[int] = []
        self._behind: ThreadPoolExecutor | None = None
        """Makes the copies, one after the other, until `close`. None: they are made at once."""
        self._saving: Future[None] | None = None
        """The newest of them."""
        if _plain(self._store) is not None:
            self._behind = ThreadPoolExecutor(1, "llm-blocks")

    @property
    def rows(self) -> int:
        """Rows in use: 0 to `rows - 1`."""
        return len(self._filled)

    @property
    def room(self) -> tuple[int, int]:
        """Rows and tokens that the dense part has room for."""
        return self.dense.shape[2], self.dense.shape[4]

    def row(self, sequence: int) -> int:
        """The row of a running sequence; it changes when others end."""
        return self._row_of[sequence]

    def start(self, sequence: int, blocks: Listing[int]) -> None:
        """Give a sequence a row that begins with these blocks."""
        self._settle()
        row = len(self._filled)
        self._reserve(row + 1, len(blocks) * self.block_size)
        self._row_of[sequence] = row
        self._owner.append(sequence)
        self._filled.append(len(blocks) * self.block_size)
        for index, block in enumerate(blocks):
            self._piece(row, index * self.block_size).copy_(self._store[block])

    def reserve(self, sequence: int, tokens: int) -> None:
        """Make the row of a sequence long enough for so many tokens, which are about to be written."""
        self._reserve(len(self._filled), tokens)
        row = self._row_of[sequence]
        self._filled[row] = max(self._filled[row], tokens)

    def follow(self, rows: Listing[int], positions: Listing[int]) -> None:
        """Make rows long enough for a token at these positions, which is about to be written."""
        longest = max(positions) + 1
        if longest > self.dense.shape[4]:
            self._reserve(len(self._filled), longest)
        for row, position in zip(rows, positions, strict=True):
            self._filled[row] = position + 1

    def save(self, full: Iterable[tuple[int, Listing[Published]]]) -> None:
        """Copy full blocks of rows to the store: of each of these sequences, those named."""
        pieces = [(p.block, self._row_of[sequence], p.index * self.block_size) for sequence, ps in full for p in ps]
        if self._behind is None:
            for block, row, start in pieces:
                self._store[block].copy_(self._piece(row, start))
            return
        store, dense = _plain(self._store), _plain(self.dense)
        assert store is not None
        assert dense is not None
        self._saving = self._behind.submit(_copy, store, dense, pieces)

    def _settle(self) -> None:
        """Wait for the copies: rows are about to move, or the store is to be read."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def end(self, sequence: int, *, wipe: bool = False) -> None:
        """Take the row back. `wipe`: what it holds is not finite, and must not be met again even behind a mask."""
        row = self._row_of.pop(sequence, None)
        if row is None:
            return
        self._settle()
        if wipe:
            self.dense[:, :, row].zero_()
        last = len(self._filled) - 1
        if row != last:  # rows stay without holes, so that a batch is a slice
            filled = self._filled[last]
            self.dense[:, :, row, :, :filled].copy_(self.dense[:, :, last, :, :filled])
            self._owner[row] = self._owner[last]
            self._filled[row] = filled
            self._row_of[self._owner[row]] = row
        self._owner.pop()
        self._filled.pop()
        rows, tokens = self.room
        if not self._filled and rows * tokens > 16 * FIRST_ROWS * FIRST_TOKENS:
            self.dense = self._allocate(FIRST_ROWS, FIRST_TOKENS)  # idle: the memory goes back

    def clear(self) -> None:
        """Forget everything; the memory goes back to the system. Only while no sequence runs."""
        assert not self._row_of, "sequences run"
        self._settle()
        self._store = _zeros(tuple(self._store.shape), self.dtype, self.device)
        self.dense = self._allocate(FIRST_ROWS, FIRST_TOKENS)

    def close(self) -> None:
        """No more is kept: the thread behind the steps ends, if there is one."""
        if self._behind is not None:
            self._behind.shutdown()

    def _piece(self, row: int, start: int) -> torch.Tensor:
        return self.dense[:, :, row, :, start : start + self.block_size]

    def _reserve(self, rows: int, tokens: int) -> None:
        have_rows, have_tokens = self.room
        if rows <= have_rows and tokens <= have_tokens:
            return
        old = self.dense
        self.dense = self._allocate(_double(have_rows, rows), _double(have_tokens, tokens))
        for row, filled in enumerate(self._filled):
            self.dense[:, :, row, :, :filled].copy_(old[:, :, row, :, :filled])

    def _allocate(self, rows: int, tokens: int) -> torch.Tensor:
        shape = (self.shape.layers, 2, rows, self.shape.heads, tokens, self.shape.size)
        return _zeros(shape, self.dtype, self.device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU the kernel backs a page when it is first used, where `torch.zeros` would write all of them."""
    count = math.prod(shape)
    if device.type != "cpu" or not count:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


def _plain(tensor: torch.Tensor) -> _Plain | None:
    """The same memory as plain numbers, on a CPU; else None."""
    if tensor.device.type != "cpu" or tensor.dtype.itemsize not in _NUMBERS:
        return None
    found: _Plain = tensor.view(_NUMBERS[tensor.dtype.itemsize]).numpy()
    return found


def _copy(store: _Plain, dense: _Plain, pieces: Iterable[tuple[int, int, int]]) -> None:
    """Blocks of the store from (row, first token) of the dense part.

    By this thread alone: torch would share a copy of this size with a team of threads, and wait for cores that others
    have.
    """
    size = store.shape[4]
    for block, row, start in pieces:
        store[block] = dense[:, :, row, :, start : start + size]


def _double(have: int, wanted: int) -> int:
    while have < wanted:
        have *= 2
    return have
