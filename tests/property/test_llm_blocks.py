"""The books of the key-value store under any order of what sequences do."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dataflower.llm.blocks import BlockManager, Table

SIZE = 3
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=14)
"""Few different tokens, so that prefixes coincide often."""


class Books(RuleBasedStateMachine):
    """Sequences that begin, grow, compute and end; beside the manager, what each block must hold."""

    @initialize(count=st.integers(2, 9))
    def begin(self, count):
        self.manager = BlockManager(count, SIZE)
        self.live: list[tuple[Table, list[int], str]] = []
        self.stored: dict[int, tuple[str, tuple[int, ...]]] = {}
        """What the store holds in each published block: the whole prefix up to its end."""

    @rule(root=st.sampled_from("ab"), tokens=TOKENS)
    def attach(self, root, tokens):
        table = self.manager.attach(root, tokens, len(tokens) - 1)
        found = table.published * SIZE
        assert found < len(tokens)
        for index, block in enumerate(table.blocks):  # right content, of the right root
            assert self.stored[block] == (root, tuple(tokens[: (index + 1) * SIZE]))
        if not self.manager.grow(table, len(tokens)):
            self.manager.release(table)
        else:
            self.live.append((table, tokens, root))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def publish(self, data):
        table, tokens, root = data.draw(st.sampled_from(self.live))
        computed = data.draw(st.integers(table.published * SIZE, len(tokens)))
        for fresh in self.manager.publish(table, tokens, computed):
            assert all(fresh.block not in other.blocks for other, _, _ in self.live if other is not table)
            self.stored[fresh.block] = (root, tuple(tokens[: (fresh.index + 1) * SIZE]))
        for index in range(table.published):
            assert self.stored[table.blocks[index]] == (root, tuple(tokens[: (index + 1) * SIZE]))
        assert table.published == computed // SIZE

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=TOKENS)
    def grow(self, data, more):
        table, tokens, _ = data.draw(st.sampled_from(self.live))
        before, free = list(table.blocks), self.manager.available
        wanted = self.manager.blocks_for(len(tokens) + len(more)) - len(before)
        if self.manager.grow(table, len(tokens) + len(more)):
            tokens.extend(more)
            assert self.manager.available == free - wanted
        else:
            assert wanted > free
            assert table.blocks == before

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data):
        entry = data.draw(st.sampled_from(self.live))
        self.live.remove(entry)
        self.manager.release(entry[0])

    @rule()
    def forget(self):
        self.manager.forget()
        assert self.manager.statistics().cached == 0

    @invariant()
    def books_balance(self):
        if hasattr(self, "manager"):
            self.manager.check([table for table, _, _ in self.live])

    def teardown(self):
        if hasattr(self, "manager"):
            for table, _, _ in self.live:
                self.manager.release(table)
            assert self.manager.available == self.manager.count


TestBooks = Books.TestCase
TestBooks.settings = settings(stateful_step_count=30)


def test_two_that_computed_the_same_keep_one_copy():
    manager = BlockManager(6, SIZE)
    tables = [manager.attach("m", [1, 2, 3, 4], 3) for _ in range(2)]
    for table in tables:
        assert manager.grow(table, 4)
        manager.publish(table, [1, 2, 3, 4], 4)
    assert tables[0].blocks[0] == tables[1].blocks[0]
    assert tables[0].blocks[1] != tables[1].blocks[1]
    assert manager.available == 3


def test_roots_never_share():
    manager = BlockManager(6, SIZE)
    table = manager.attach(("model", "adapter"), [1, 2, 3], 3)
    manager.grow(table, 3)
    manager.publish(table, [1, 2, 3], 3)
    assert manager.attach(("model", ""), [1, 2, 3, 4], 3).published == 0
    assert manager.attach(("model", "adapter"), [1, 2, 3, 4], 3).published == 1


def _published(manager: BlockManager, tokens: Sequence[int]) -> Table:
    table = manager.attach("m", tokens, len(tokens))
    assert manager.grow(table, len(tokens))
    manager.publish(table, tokens, len(tokens))
    return table


def test_the_least_recently_used_content_goes_first():
    manager = BlockManager(2, SIZE)
    manager.release(_published(manager, [1, 1, 1]))
    manager.release(_published(manager, [2, 2, 2]))
    manager.release(manager.attach("m", [1, 1, 1], 3))  # used again
    held = manager.attach("x", [9], 0)
    assert manager.grow(held, 1)
    assert manager.attach("m", [1, 1, 1], 3).published == 1
    assert manager.attach("m", [2, 2, 2], 3).published == 0
