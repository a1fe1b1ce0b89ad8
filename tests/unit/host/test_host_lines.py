"""What comes here from lenders, by its ticket."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dataflower.host.kept import Kept
from dataflower.host.lines import Lines
from dataflower.host.peer_wire import Ship, decode_order
from dataflower.host.session import Session
from dataflower.wire import TensorRef

REF = TensorRef(1 << 16, 0, 0, 64, "UINT8", (64,))


class Lender:
    """A session with a lender, as far as lines look at it."""

    is_over = False

    def __init__(self) -> None:
        self.kept = Kept()
        self.orders: list[Any] = []
        self.claimed: list[TensorRef] = []

    def due(self, deadline_s: float) -> float:
        return 0.0

    def tell(self, container: int, body: bytes) -> None:
        self.orders.append(decode_order(body))

    def claim(self, ref: TensorRef) -> None:
        self.claimed.append(ref)


def test_a_lender_that_speaks_of_anothers_ticket_takes_nothing_from_that_one() -> None:
    lines, owner, liar = Lines(lambda: 0.0), Lender(), Lender()
    for lender in (owner, liar):
        lines.add(cast(Session, lender))
    owner.kept.add(REF)
    came: list[str] = []
    lines.fetch(cast(Session, owner), REF, lambda: came.append("here"))
    (order,) = owner.orders
    assert isinstance(order, Ship)
    ((ticket, _),) = order.load
    with pytest.raises(ValueError, match=f"ticket {ticket}, which is another's"):
        lines.fetched(cast(Session, liar), ticket)
    assert not came
    lines.fetched(cast(Session, owner), ticket)
    assert came == ["here"]
    assert owner.claimed == [REF]
    lines.fetched(cast(Session, owner), ticket)  # for a second time: its slot may have been released meanwhile
    assert came == ["here"]
