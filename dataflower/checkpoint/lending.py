"""What a store and its shelves (`shelves`) want of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dataflower.checkpoint import protocol
from dataflower.checkpoint.plan import Plan
from dataflower.checkpoint.region import Owned
from dataflower.errors import Code


class Lent(Protocol):
    """Host memory that is being filled, or is."""

    plan: Plan
    owned: Owned
    ready: bool


class Borrower(Protocol):
    """Who waits for a model in host memory. Called in the store's main thread."""

    def begin(self, lent: Lent) -> None:
        """The memory is there and being filled; once."""
        ...

    def granted(self, lent: Lent) -> None:
        """It is filled and checked, and stays until it is given back."""
        ...

    def refused(self, code: Code, message: str) -> None:
        """There will be none."""
        ...


class Lender(Protocol):
    """The store, as its shelves see it. All but `post` and `locate` is for its main thread."""

    def post(self, say: Callable[[], None]) -> None:
        """Have something said in the main thread; from any thread."""
        ...

    def locate(self, model: str) -> Plan:
        """What a name means now; blocks. Raises DataflowerError."""
        ...

    def lend(self, model: str, borrower: Borrower) -> int:
        """Ask for a model in host memory; gives a number for `give_back`."""
        ...

    def give_back(self, number: int) -> None:
        """It is not needed any more."""
        ...

    def is_here(self, client: int) -> bool:
        """Whether a client has not gone."""
        ...

    def answer(self, client: int, message: protocol.FromStore, descriptors: Sequence[int] = ()) -> bool:
        """Say something to a client; False if it has gone."""
        ...
