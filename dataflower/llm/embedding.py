"""Vectors of tokens: rows of the embedding, or of the laid-out output head where that is the same weight.

A model with tied embeddings needs one matrix for both. The head is kept in the layout of matrix kernels; a second,
plain copy for its rows would be a fifth of the memory of a small model.
"""

from __future__ import annotations

from typing import Protocol

import torch

_BLOCK = 64
"""Rows that lie side by side in a laid-out weight."""
_WORD = torch.int32
"""In which neighbours in a row lie: one fp32 number, or two of bf16."""


class Embedding(Protocol):
    """Gives each token its vector."""

    @property
    def weight(self) -> torch.Tensor:
        """The memory that it reads."""
        ...

    @property
    def plain(self) -> torch.Tensor | None:
        """The same (vocabulary, width); None if its rows are elsewhere: in the head."""
        ...

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n,) -> (n, width)."""
        ...


class PlainEmbedding:
    """Rows of a matrix, used where they lie."""

    def __init__(self, weight: torch.Tensor) -> None:
        """`weight`: (vocabulary, width)."""
        self.weight = weight
        self.plain: torch.Tensor | None = weight

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Embedding`."""
        return self.weight.index_select(0, tokens)


class TiedEmbedding:
    """Rows read out of a head in the layout of oneDNN: blocks of 64 rows, each (words of a row, 64)."""

    plain = None

    def __init__(self, head: torch.Tensor, width: int, dtype: torch.dtype) -> None:
        """`head`: its bytes (uint8), kept as long as this; `width`: numbers of a row.

        Raises:
            ValueError: they are not whole blocks.
        """
        self.weight, self._dtype = head, dtype
        words = width * dtype.itemsize // _WORD.itemsize
        if width * dtype.itemsize % _WORD.itemsize or head.numel() % (_BLOCK * words * _WORD.itemsize):
            raise ValueError(f"{head.numel()} bytes are no blocks of {_BLOCK} rows of {width} numbers")
        self._blocks = head.view(_WORD).view(-1, words, _BLOCK)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Embedding`."""
        rows: torch.Tensor = self._blocks[tokens // _BLOCK, :, tokens % _BLOCK]
        return rows.view(self._dtype)

    def holds(self, weight: torch.Tensor) -> bool:
        """Whether all rows are those of `weight` (vocabulary, width), bit for bit: the layout is of the known kind."""
        rows, words = len(weight), weight.contiguous().view(_WORD)
        pieces = ((first, min(rows, first + _BLOCK * _BLOCK)) for first in range(0, rows, _BLOCK * _BLOCK))
        return self._blocks.shape[0] * _BLOCK >= rows and all(
            torch.equal(self(torch.arange(*piece)).view(_WORD), words[slice(*piece)]) for piece in pieces
        )


def tied(head: torch.Tensor, weight: torch.Tensor) -> TiedEmbedding | None:
    """The rows of `weight` out of the bytes of a head that was laid out of it; None if its layout is unknown."""
    try:
        found = TiedEmbedding(head, weight.shape[1], weight.dtype)
    except ValueError:
        return None
    return found if found.holds(weight) else None
