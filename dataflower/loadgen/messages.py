"""What the bench and its generator processes say to each other, length-prefixed MessagePack over pipes."""

from __future__ import annotations

import enum
import struct
import typing

import msgspec
from msgspec import Struct

_LENGTH = struct.Struct("<I")


class Protocol(enum.StrEnum):
    """How requests travel."""

    GRPC = "grpc"
    HTTP = "http"


class Door(Struct, frozen=True, tag=True):
    """Where the requests go. `stream`: outputs are taken item by item. `http_url`: over HTTP, and where that is."""

    address: str
    workflow: str
    api_key: str = ""
    ca_file: str = ""
    http_url: str = ""
    stream: bool = False


class Job(Struct, frozen=True, tag=True):
    """What one generator is to send. The lists are as long as each other.

    Attributes:
        door: where to.
        run: what invocation ids begin with.
        bodies: encoded requests without an id.
        numbers: of the requests, in the whole run.
        times: when each starts, seconds since the begin.
        picks: which body each sends.
        deadline_s: how long a request may take, from its scheduled start; None: as long as it likes.
        drain_s: how long after the last start answers are waited for.
    """

    door: Door
    run: str
    bodies: list[bytes]
    numbers: list[int]
    times: list[float]
    picks: list[int]
    deadline_s: float | None = None
    drain_s: float = 30.0


class Ready(Struct, frozen=True, tag=True):
    """The generator has its job and a connection."""


class Refused(Struct, frozen=True, tag=True):
    """The generator can't do its job."""

    message: str


class Begin(Struct, frozen=True, tag=True):
    """Go. `at`: CLOCK_MONOTONIC seconds that the times of the job count from."""

    at: float


class Stop(Struct, frozen=True, tag=True):
    """Send nothing more; what is under way is cut off after `grace_s`."""

    grace_s: float = 0.0


class Sample(Struct, frozen=True, array_like=True):
    """One request. Times are seconds since the begin of the run.

    Attributes:
        number: of the request.
        scheduled: when it should have started.
        sent: when it did.
        ended: when its answer was complete, or it had failed.
        streams: for each stream output, when each of its items came.
        code: status of a failure, empty if it succeeded; `UNFINISHED` if the bench cut it off.
        kind: type of the error.
        stage: the stage that failed.
        message: of the error.
        retry_after_s: what a refusal said.
        lost: nobody answered, as opposed to a refusal by the server.
        invocation: its id, if the server made it up.
    """

    number: int
    scheduled: float
    sent: float
    ended: float
    streams: list[list[float]] = []
    code: str = ""
    kind: str = ""
    stage: str = ""
    message: str = ""
    retry_after_s: float | None = None
    lost: bool = False
    invocation: str = ""

    @property
    def latency_s(self) -> float:
        """From the scheduled start."""
        return self.ended - self.scheduled


UNFINISHED = "UNFINISHED"
REFUSED = "RESOURCE_EXHAUSTED"


class Samples(Struct, frozen=True, tag=True):
    """Requests that are over. `sent`: how many this generator has sent in all."""

    samples: list[Sample]
    sent: int


class Done(Struct, frozen=True, tag=True):
    """Nothing more will come of this job. `lost`: the server went away, seconds since the begin."""

    lost: float | None = None


ToGenerator = Job | Begin | Stop
FromGenerator = Ready | Refused | Samples | Done


class Reader(typing.Protocol):
    """What messages are read from: an asyncio.StreamReader."""

    async def readexactly(self, n: int, /) -> bytes:
        """Raises IncompleteReadError at the end."""
        ...


_to_generator: msgspec.msgpack.Decoder[ToGenerator] = msgspec.msgpack.Decoder(ToGenerator)
_from_generator: msgspec.msgpack.Decoder[FromGenerator] = msgspec.msgpack.Decoder(FromGenerator)
_encoder = msgspec.msgpack.Encoder()


def framed(message: ToGenerator | FromGenerator) -> bytes:
    """A message with its length before it."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def _frame(reader: Reader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


async def order(reader: Reader) -> ToGenerator:
    """The next message to a generator; IncompleteReadError if the bench is gone."""
    return _to_generator.decode(await _frame(reader))


async def reply(reader: Reader) -> FromGenerator:
    """The next message of a generator; IncompleteReadError if it is gone."""
    return _from_generator.decode(await _frame(reader))
