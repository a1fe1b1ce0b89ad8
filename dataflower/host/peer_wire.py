"""What two hosts say to each other: how they meet, and orders and reports about containers that one lends the other.

The *owner* of an invocation decides; the *lender* runs containers for it. Once they have met, everything travels in
parcels of a `channel.ferry`, whose key is the number that the container has with its owner (0: none in particular).

Two lenders of the same owner are *neighbours* once it has introduced them: one sends the other what the owner tells it
to, over a connection of their own that carries nothing but memory and *tickets*, numbers of the owner's for such bytes.
"""

from __future__ import annotations

import msgspec

from dataflower import wire
from dataflower.spec.workflow import Stage

VERSION = 4
ASIDE = 1 << 40
"""Added to a container's number: a key for what neither holds up nor waits for that container's other messages."""
TICKETS = 1 << 41
"""Added to a ticket: the key under which it says that its bytes are there."""

# --- meeting -------------------------------------------------------------------------------------------------


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag="challenge"):
    """Lender -> owner, first of all."""

    version: int
    name: str
    nonce: bytes


class Greeting(msgspec.Struct, frozen=True, array_like=True, tag="greeting"):
    """Owner -> lender. `session`: 16 bytes that nobody else knows; `resumes`: there was a connection before.

    `visits`: it is a neighbour, and `session` the key with which it was introduced.
    """

    version: int
    name: str
    session: bytes
    resumes: bool
    nonce: bytes
    proof: bytes
    visits: bool = False


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

    `stays`: memory that its reports name is not sent along: all who read it are on lenders. `readers`: the names of
    those of them that are not this one.
    """

    key: str
    stage: Stage
    stays: bool = False
    readers: tuple[str, ...] = ()


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """It is idle: let it leave."""


class Kill(msgspec.Struct, frozen=True, array_like=True, tag="kill"):
    """End it, whatever it is doing."""

    reason: str


class DropArena(msgspec.Struct, frozen=True, array_like=True, tag="droparena"):
    """Nobody reads this arena of a container that is gone."""

    arena: int


class Expect(msgspec.Struct, frozen=True, array_like=True, tag="expect"):
    """Another lender will come, once, with this key, and send memory. Answered with `Expecting`."""

    line: int
    key: bytes
    name: str


class Introduce(msgspec.Struct, frozen=True, array_like=True, tag="introduce"):
    """There is a lender at this address, which expects the key. Answered with `Met` or `Parted`."""

    line: int
    key: bytes
    name: str
    address: str


class Part(msgspec.Struct, frozen=True, array_like=True, tag="part"):
    """Nothing goes over this line any more; for either end of it."""

    line: int


class Ship(msgspec.Struct, frozen=True, array_like=True, tag="ship"):
    """Send memory over this line, and then its tickets; line 0: to the owner. `due`: by the lender's clock, seconds."""

    line: int
    load: tuple[tuple[int, wire.TensorRef], ...]
    due: float = 0.0


class Spent(msgspec.Struct, frozen=True, array_like=True, tag="spent"):
    """These tickets are not named any more."""

    tickets: tuple[int, ...]


class Strand(msgspec.Struct, frozen=True, array_like=True, tag="strand"):
    """What these tickets stand for is lost, as far as it has not come: (ticket, arena, slot)."""

    tickets: tuple[tuple[int, int, int], ...]


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


class Expecting(msgspec.Struct, frozen=True, array_like=True, tag="expecting"):
    """The other end of this line may come."""

    line: int


class Met(msgspec.Struct, frozen=True, array_like=True, tag="met"):
    """This line is there."""

    line: int


class Parted(msgspec.Struct, frozen=True, array_like=True, tag="parted"):
    """A line could not be had, or is broken for good; these tickets may not have come over it."""

    line: int
    reason: str
    missing: tuple[int, ...]


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

LineOrder = Expect | Introduce | Part | Ship | Spent | Strand
LineReport = Expecting | Met | Parted
"""What is about the way between two lenders, and no container."""

encode = msgspec.msgpack.Encoder().encode
decode_challenge = msgspec.msgpack.Decoder(Challenge).decode
decode_greeting = msgspec.msgpack.Decoder(Greeting).decode
decode_welcome = msgspec.msgpack.Decoder(Welcome | Refusal).decode
decode_order = msgspec.msgpack.Decoder(ToTask | Order | Stop | Kill | DropArena | Bye | LineOrder).decode
decode_report = msgspec.msgpack.Decoder(wire.FromContainer | Ended | Sending | LineReport).decode
