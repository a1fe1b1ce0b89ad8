"""Who holds which block of the key-value store, and which blocks hold a prefix that somebody may want again.

A block has room for `size` tokens. Paging and reference counts after PagedAttention (Kwon et al., SOSP 2023). A full
block is
published under its content: the key is (key of the block before it, its tokens), and the key of the first begins with
the root (model digest, adapter digest). Keys are compared, not hashed to a digest, so that two prefixes never share a
block by accident.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Key = tuple[Hashable, tuple[int, ...]]
"""(the root, or the number of the node before; the tokens of the block)."""


@dataclass(frozen=True, slots=True)
class BlockStatistics:
    """Blocks in all; in use by sequences; kept for their content alone; prefix tokens asked for and found."""

    count: int
    used: int
    cached: int
    asked_tokens: int
    found_tokens: int


@dataclass(slots=True)
class Table:
    """The blocks of one sequence, in order. `published` of them are full and known by content; `node` is the last's."""

    root: Hashable
    blocks: list[int]
    node: Hashable
    published: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """Content that is now known: position `index` of the sequence's table, to be stored in `block`."""

    block: int
    index: int


class BlockManager:
    """The books of the key-value store: a block is free, in use (by one table or several), or kept for its content."""

    def __init__(self, count: int, size: int) -> None:
        """`count` blocks for `size` tokens each."""
        self.count = count
        self.size = size
        self._free = list(range(count - 1, -1, -1))
        self._references = [0] * count
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Published blocks that no table refers to, least recently used first."""
        self._by_key: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._node_of: dict[int, int] = {}
        self._nodes = 0
        self._asked = self._found = 0

    @property
    def available(self) -> int:
        """Blocks that could be given out now."""
        return len(self._free) + len(self._kept)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens need."""
        return -(-tokens // self.size)

    def attach(self, root: Hashable, tokens: Sequence[int], limit: int) -> Table:
        """A table that begins with the longest known prefix of `tokens`, of at most `limit` tokens.

        The caller owns the table, and ends it with `release`.
        """
        table = Table(root, [], ("root", root))
        size = self.size
        for start in range(0, min(limit, len(tokens)) // size * size, size):
            block = self._by_key.get((table.node, tuple(tokens[start : start + size])))
            if block is None:
                break
            self._refer(block)
            table.blocks.append(block)
            table.node = self._node_of[block]
        table.published = len(table.blocks)
        self._asked += len(tokens)
        self._found += table.published * size
        return table

    def can_grow(self, table: Table, tokens: int) -> bool:
        """Whether `grow` would succeed."""
        return self.blocks_for(tokens) - len(table.blocks) <= self.available

    def grow(self, table: Table, tokens: int) -> bool:
        """Make the table hold so many tokens; takes all the blocks needed, or none."""
        if not self.can_grow(table, tokens):
            return False
        while len(table.blocks) * self.size < tokens:
            block = self._free.pop() if self._free else self._evict()
            self._references[block] = 1
            table.blocks.append(block)
        return True

    def publish(self, table: Table, tokens: Sequence[int], computed: int) -> list[Published]:
        """Make the table's full blocks known, `computed` being the tokens whose keys and values exist.

        Gives those that are new and must be stored. Content that is known already is not kept twice: the table then
        refers to the block that holds it, and its own is free again.
        """
        fresh = []
        size = self.size
        while (table.published + 1) * size <= computed:
            index = table.published
            key = (table.node, tuple(tokens[index * size : (index + 1) * size]))
            own = table.blocks[index]
            known = self._by_key.get(key)
            if known is None:
                self._nodes += 1
                self._by_key[key], self._key_of[own], self._node_of[own] = own, key, self._nodes
                fresh.append(Published(own, index))
                known = own
            else:
                self._refer(known)
                table.blocks[index] = known
                self._references[own] = 0
                self._free.append(own)
            table.node = self._node_of[known]
            table.published += 1
        return fresh

    def release(self, table: Table) -> None:
        """The sequence needs its blocks no more; those with known content are kept until room is short."""
        for block in reversed(table.blocks):  # the end of a prefix is of use to fewer than its beginning
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._key_of:
                    self._kept[block] = None
                else:
                    self._free.append(block)
        table.blocks, table.published, table.node = [], 0, ("root", table.root)

    def forget(self) -> None:
        """Drop all content that no table refers to."""
        while self._kept:
            self._free.append(self._evict())

    def statistics(self) -> BlockStatistics:
        """What is in use."""
        return BlockStatistics(self.count, self.count - self.available, len(self._kept), self._asked, self._found)

    def check(self, tables: Sequence[Table]) -> None:
        """Hold the books against all live tables. Raises AssertionError."""
        held = [0] * self.count
        for table in tables:
            for block in table.blocks:
                held[block] += 1
        assert held == self._references, "reference counts differ from what the tables hold"
        unused = {block for block, n in enumerate(held) if n == 0}
        assert sorted([*self._free, *self._kept]) == sorted(unused), "a block is neither free, kept nor in use"
        assert all(block in self._key_of for block in self._kept), "a block is kept without content"
        assert not any(block in self._key_of for block in self._free), "a free block is still known by content"
        assert {block: key for key, block in self._by_key.items()} == self._key_of, "the two ways to content differ"
        for table in tables:
            private = table.blocks[table.published :]
            assert all(held[block] == 1 for block in private), "a block without known content is shared"

    def _refer(self, block: int) -> None:
        self._kept.pop(block, None)
        self._references[block] += 1

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        del self._by_key[self._key_of.pop(block)]
        del self._node_of[block]
        return block
