"""What two hosts say to each other: how they meet, and orders and reports about containers that one lends the other.

The *owner* of an invocation decides; the *lender* runs containers for it. Once they have met, everything travels in
parcels of a `channel.ferry`, whose key is the number that the container has with its owner (0: none in particular).
"""

from __future__ import annotations

import msgspec

from dataflower import wire
from dataflower.spec.workflow import Stage

VERSION = 3
ASIDE = 1 << 40
"""Added to a container's number: a key for what neither holds up nor waits for that container's other messages."""

# --- meeting -------------------------------------------------------------------------------------------------


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag="challenge"):
    """Lender -> owner, first of all."""

    version: int
    name: str
    nonce: bytes


class Greeting(msgspec.Struct, frozen=True, array_like=True, tag="greeting"):
    """Owner -> lender. `session`: 16 bytes that nobody else knows; `resumes`: there was a connection before."""

    version: int
    name: str
    session: bytes
    resumes: bool
    nonce: bytes
    proof: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """Lender -> owner. `known`: the session goes on, or begins; `monotonic`: the lender's clock now, seconds."""

    proof: bytes
    known: bool
    monotonic: float


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refusal"):
    """Lender -> owner: why not."""

    reason: str


# --- owner -> lender -----------------------------------------------------------------------------------------


class Order(msgspec.Struct, frozen=True, array_like=True, tag="order"):
    """Start a container for a stage of the workflow `key` (`name@version`).

    `stays`: memory that its reports name is not sent along: all who read it are on the lender.
    """

    key: str
    stage: Stage
    stays: bool = False


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """It is idle: let it leave."""


class Kill(msgspec.Struct, frozen=True, array_like=True, tag="kill"):
    """End it, whatever it is doing."""

    reason: str


class DropArena(msgspec.Struct, frozen=True, array_like=True, tag="droparena"):
    """Nobody reads this arena of a container that is gone."""

    arena: int


class Bye(msgspec.Struct, frozen=True, array_like=True, tag="bye"):
    """The session is over."""


# --- lender -> owner -----------------------------------------------------------------------------------------


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """The container is gone, or was never started; its last word. `begun`: see `core.events.ContainerExited`."""

    reason: str
    begun: tuple[int, ...] | None = None


class Sending(msgspec.Struct, frozen=True, array_like=True, tag="sending"):
    """What the container's data unit still sends: see `core.events.ContainerSending`. Overtakes the bytes."""

    fresh: int
    waiting: int
    bytes_per_s: float
    over: tuple[int, ...] = ()
    run_s: float = 0.0


ToTask = (
    wire.RunTask
    | wire.RunBatch
    | wire.Feed
    | wire.FeedEnd
    | wire.Grant
    | wire.CancelTask
    | wire.Withdraw
    | wire.Prefetch
    | wire.ReleaseSlots
)
"""What an owner may tell a container; everything else is between the container and the host that it runs on."""

encode = msgspec.msgpack.Encoder().encode
decode_challenge = msgspec.msgpack.Decoder(Challenge).decode
decode_greeting = msgspec.msgpack.Decoder(Greeting).decode
decode_welcome = msgspec.msgpack.Decoder(Welcome | Refusal).decode
decode_order = msgspec.msgpack.Decoder(ToTask | Order | Stop | Kill | DropArena | Bye).decode
decode_report = msgspec.msgpack.Decoder(wire.FromContainer | Ended | Sending).decode
