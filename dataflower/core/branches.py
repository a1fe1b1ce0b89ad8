"""Broadcast: a token from outside a fan-out is shared by all tasks inside it until the last of them is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dataflower.core.ledger import Ledger
from dataflower.core.payload import Absent, Payload, drop, hold
from dataflower.core.program import Consumer, StageProgram
from dataflower.wire import Tag, Value

Shared = tuple[Consumer, Value | Absent | tuple[Value, ...]]


class _Branch:
    """All tasks of a stage below one tag. `expected` None: the fan-out under that tag still grows."""

    __slots__ = ("done", "expected", "shared")

    def __init__(self) -> None:
        self.expected: int | None = None
        self.done = 0
        self.shared: list[Shared] = []


class Branches:
    """The branches of one invocation, by (stage, tag)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._branches: dict[tuple[int, Tag], _Branch] = {}

    def share(self, consumer: Consumer, tag: Tag, payload: Value | Absent | tuple[Value, ...]) -> None:
        """Keep a token for the tasks to come. Those that exist must be told before `close_if_done`."""
        hold(self._ledger, payload)
        self._branch(consumer.stage, tag).shared.append((consumer, payload))

    def shared_with(self, stage: StageProgram, tag: Tag) -> Iterator[Shared]:
        """What a new task of the stage shares with others, outermost first."""
        if stage.broadcast_depth is None:
            return
        for depth in range(stage.broadcast_depth, stage.depth):
            branch = self._branches.get((stage.index, tag[:depth]))
            if branch is not None:
                yield from tuple(branch.shared)

    def expect(self, stage: StageProgram, tag: Tag, count: int) -> None:
        """The fan-out below `tag` is complete: that many tasks or branches of the stage lie below it."""
        self._branch(stage.index, tag).expected = count
        self.close_if_done(stage, tag)

    def child_done(self, stage: StageProgram, tag: Tag) -> None:
        """A task (or a whole branch) with this tag is over."""
        if stage.broadcast_depth is None or len(tag) <= stage.broadcast_depth:
            return
        above = tag[:-1]
        self._branch(stage.index, above).done += 1
        self.close_if_done(stage, above)

    def close_if_done(self, stage: StageProgram, tag: Tag) -> None:
        """Drop what a branch shares once all its tasks are over and all its broadcast edges have spoken."""
        branch = self._branches.get((stage.index, tag))
        if branch is None or branch.expected is None or branch.done < branch.expected:
            return
        if len(branch.shared) < stage.broadcasts_at.get(len(tag), 0):
            return
        del self._branches[stage.index, tag]
        for _, payload in branch.shared:
            drop(self._ledger, payload)
        self.child_done(stage, tag)

    def rewrite(self, change: Callable[[Payload], Payload]) -> None:
        """Hold other values instead; `change` keeps the books."""
        for branch in self._branches.values():
            branch.shared = [
                (consumer, payload if isinstance(payload, Absent) else change(payload))
                for consumer, payload in branch.shared
            ]

    def clear(self) -> None:
        """The invocation is over."""
        for branch in self._branches.values():
            for _, payload in branch.shared:
                drop(self._ledger, payload)
        self._branches.clear()

    def _branch(self, stage: int, tag: Tag) -> _Branch:
        return self._branches.setdefault((stage, tag), _Branch())
