"""What a store keeps in mind of its clients and of the models in its memory."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.channel.link import Link
from dataflower.checkpoint.lending import Borrower
from dataflower.checkpoint.plan import Plan
from dataflower.checkpoint.region import Owned

REPORT_S = 0.02
"""Between two reports of a load at least: each costs the threads that read and check a little of their time."""


@dataclass(slots=True)
class Client:
    """A process that asked. `key`: the content it will get or has got."""

    number: int
    link: Link
    process: int = 0
    """0: it is the host, which alone may say what stays in memory, and is told what is there."""
    model: str = ""
    early: bool = False
    key: str = ""
    attached: bool = False
    holds: bool = False
    """It wants the model to stay, and nothing for itself."""


@dataclass(slots=True)
class Holding:
    """A model in memory or on its way."""

    plan: Plan
    owned: Owned
    began: float
    ready: bool = False
    seconds: float = 0.0
    """That the load took."""
    told_at: float = -REPORT_S
    """When its progress was reported last."""


@dataclass(slots=True)
class Loan:
    """A borrower of the store's own, which is a client to the policy."""

    model: str
    borrower: Borrower
    key: str = ""
    begun: bool = False
