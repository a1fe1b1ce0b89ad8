"""Where keys and values lie: a store of blocks that outlives sequences, and dense rows for those that run.

Matrix products want the keys of a sequence side by side; gathering them out of blocks in every layer of every step
costs as much as the attention itself. So a running sequence has a row, into which its blocks are copied when it
starts, and a block goes to the store when it is full. Running sequences thereby take their memory twice, and nothing
is gathered while they decode.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from collections.abc import Sequence as Listing
from dataclasses import dataclass

import torch

from dataflower.llm.blocks import Published

FIRST_ROWS = 2
FIRST_TOKENS = 256
"""Size of the dense part at the start; it doubles as needed."""


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
        row = len(self._filled)
        self._reserve(row + 1, len(blocks) * self.block_size)
        self._row_of[sequence] = row
        self._owner.append(sequence)
        self._filled.append(len(blocks) * self.block_size)
        for index, block in enumerate(blocks):
            self._piece(row, index).copy_(self._store[block])

    def reserve(self, sequence: int, tokens: int) -> None:
        """Make the row of a sequence long enough for so many tokens, which are about to be written."""
        self._reserve(len(self._filled), tokens)
        row = self._row_of[sequence]
        self._filled[row] = max(self._filled[row], tokens)

    def follow(self, sequences: Iterable[int], lengths: Listing[int]) -> list[int]:
        """`reserve` for many sequences, each to a length of its own; gives their rows."""
        self._reserve(len(self._filled), max(lengths))
        rows = [self._row_of[sequence] for sequence in sequences]
        for row, length in zip(rows, lengths, strict=True):
            self._filled[row] = length
        return rows

    def save(self, sequence: int, blocks: Listing[Published]) -> None:
        """Copy full blocks of a row to the store."""
        row = self._row_of[sequence]
        for published in blocks:
            self._store[published.block].copy_(self._piece(row, published.index))

    def end(self, sequence: int, *, wipe: bool = False) -> None:
        """Take the row back. `wipe`: what it holds is not finite, and must not be met again even behind a mask."""
        row = self._row_of.pop(sequence, None)
        if row is None:
            return
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
        self._store = _zeros(tuple(self._store.shape), self.dtype, self.device)
        self.dense = self._allocate(FIRST_ROWS, FIRST_TOKENS)

    def _piece(self, row: int, index: int) -> torch.Tensor:
        start = index * self.block_size
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


def _double(have: int, wanted: int) -> int:
    while have < wanted:
        have *= 2
    return have
