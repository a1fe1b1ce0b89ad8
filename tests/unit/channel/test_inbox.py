"""Messages that wait for bytes: in order for each key, whatever they wait for, and nothing is kept of what is over."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.channel.inbox import Inbox
from dataflower.channel.mirrors import MAX_GONE_BYTES, Mirrors


class Reader:
    """What was given out."""

    def __init__(self) -> None:
        self.got: list[tuple[int, bytes]] = []
        self.lost: list[int] = []
        self.inbox = Inbox(lambda key, body: self.got.append((key, body)), self.lost.append)

    @property
    def is_empty(self) -> bool:
        inbox = self.inbox
        return not (inbox._queues or inbox._waiters or inbox._came or inbox._void or inbox._over or inbox._coming)


@given(st.integers(0, 2**32))
def test_whatever_the_order_in_which_bytes_come_messages_keep_theirs(seed: int) -> None:
    rng = random.Random(seed)
    reader = Reader()
    streams, tickets = list(range(1, 6)), list(range(1, 6))
    for stream in streams:
        reader.inbox.began(stream)
    early = rng.sample(tickets, 2)
    for ticket in early:
        reader.inbox.came(ticket)
    sent = []
    for number in range(12):
        key, body = rng.randint(1, 3), bytes([number])
        sent.append((key, body))
        some, others = rng.sample(streams, rng.randint(0, 2)), rng.sample(tickets, rng.randint(0, 2))
        reader.inbox.accept(key, body, some, others)
    events = [(reader.inbox.completed, s) for s in streams]
    events += [(reader.inbox.came, t) for t in tickets if t not in early]
    rng.shuffle(events)
    for happen, number in events:
        happen(number)
    for key in (1, 2, 3):
        assert [one for one in reader.got if one[0] == key] == [one for one in sent if one[0] == key]
    reader.inbox.spent(tickets)
    assert reader.is_empty


def test_what_waits_for_a_spent_ticket_is_dropped_and_the_rest_goes_on() -> None:
    reader = Reader()
    reader.inbox.accept(1, b"gone", (), (7,))
    reader.inbox.accept(1, b"next", ())
    reader.inbox.spent((7,), (1, 2))
    assert reader.got == [(1, b"next")]
    assert reader.lost == [1]
    reader.inbox.came(7)  # it was on its way
    assert reader.is_empty


def test_nothing_is_kept_of_a_ticket_that_was_given_up_whoever_says_so_first() -> None:
    reader = Reader()
    inbox = reader.inbox
    for happen in (
        lambda: (inbox.spent((8,), (1,)), inbox.never(8)),
        lambda: (inbox.never(8), inbox.spent((8,), (1,))),
        lambda: (inbox.spent((8,), (1, 2)), inbox.ended(1), inbox.ended(2)),
        lambda: inbox.spent((8,)),
        lambda: (inbox.came(8), inbox.never(8), inbox.spent((8,), (1,))),
    ):
        inbox.accept(1, b"other", (), (8,))
        happen()
        assert reader.is_empty


def test_a_ticket_that_comes_twice_counts_once() -> None:
    reader = Reader()
    reader.inbox.accept(1, b"x", (), (7,))
    reader.inbox.came(7)
    reader.inbox.came(7)
    reader.inbox.accept(2, b"y", (), (7,))
    assert reader.got == [(1, b"x"), (2, b"y")]
    reader.inbox.spent((7,))
    assert reader.is_empty


def test_what_waits_for_lost_bytes_is_handed_back() -> None:
    reader = Reader()
    reader.inbox.came(1)
    reader.inbox.accept(1, b"has it", (), (1,))
    reader.inbox.accept(2, b"lacks one", (), (1, 2))
    reader.inbox.accept(2, b"behind", ())
    reader.inbox.accept(2, b"lost with it", ())
    reader.inbox.accept(3, b"lacks another", (), (3,))
    found = reader.inbox.strand((1, 2), lambda body: frozenset((1,)) if b"l" in body else frozenset())
    assert found == [(2, b"lacks one", {2}), (2, b"lost with it", set())]
    assert reader.got == [(1, b"has it"), (2, b"behind")]
    reader.inbox.came(3)
    assert reader.got[2:] == [(3, b"lacks another")]


def test_what_is_put_back_keeps_its_turn() -> None:
    reader = Reader()
    found: list[bytes] = []

    def deliver(key: int, body: bytes) -> None:
        if body == b"first" and not found:
            found.append(body)
            inbox.put_back(key, body, (9,))
        else:
            reader.got.append((key, body))

    inbox = Inbox(deliver)
    inbox.began(1)
    inbox.accept(1, b"first", (1,))
    inbox.accept(1, b"second", ())
    inbox.completed(1)
    assert not reader.got
    inbox.came(9)
    assert reader.got == [(1, b"first"), (1, b"second")]


def test_bytes_for_a_mirror_that_is_gone_go_nowhere() -> None:
    mirrors = Mirrors(shared=True)
    assert mirrors.make(1 << 16, 4096)
    assert not mirrors.make(1 << 16, 4096), "another ferry has made it"
    mirrors.drop(1 << 16)
    assert len(mirrors.place(1 << 16, 0, 100)) == 100
    assert not mirrors.make(1 << 16, 4096)
    assert 1 << 16 not in mirrors
    for offset, nbytes in ((0, 4097), (4096, 1), (0, 1 << 60)):
        with pytest.raises(ValueError, match="not mirrored"):
            mirrors.place(1 << 16, offset, nbytes)
    mirrors.close()


def test_a_mirror_that_was_let_go_of_before_it_was_named_takes_what_its_owner_says_within_bounds() -> None:
    mirrors = Mirrors(shared=True)
    mirrors.drop(1 << 16)
    assert not mirrors.make(1 << 16, 1 << 60)
    assert len(mirrors.place(1 << 16, 0, 100)) == 100
    with pytest.raises(ValueError, match="not mirrored"):
        mirrors.place(1 << 16, 0, MAX_GONE_BYTES + 1)
    mirrors.close()
