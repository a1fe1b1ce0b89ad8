"""What the store and its clients say to each other: MessagePack arrays over SEQPACKET sockets.

The *door* is a socket pair of which the host keeps both ends open, so that it outlives a store that died. `wire.Knock`
comes through it with one end of a new socket pair, the client's own; all else is said there, and closing it gives the
memory back. A container knocks at its host, which passes that on: a socket that many containers hold, any one of them
could shut for all. None of it needs a path, so nothing that hides the file system from a container can be in its way.
"""

from __future__ import annotations

import msgspec

from dataflower.checkpoint.manifest import Manifest
from dataflower.errors import Code

VERSION = 1
MAX_DESCRIPTORS = 60
"""Pieces of memory that are handed over in one message."""


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Client -> store, once per socket. `early`: send the memory before it is filled, and say how far that has got.

    `device`: where the weights are wanted, such as `cuda:0`; answered with `OnDevice` or `Refused`. Empty: in host
    memory.
    """

    model: str
    early: bool = False
    device: str = ""


class AskStatistics(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Host -> store: answered with `Statistics`."""


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Store -> client, while a load goes on. Bytes. `prefix`: so many from the beginning of host memory are there."""

    arrived: int
    total: int
    prefix: int


class Attached(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Store -> client, with descriptors: the memory, in `pieces` pieces; those that don't fit follow as `Pieces`.

    The hashes of chunks are left out of `manifest`. Before `Ready` its digests may be empty.
    """

    manifest: Manifest
    folder: str
    pieces: int


class Pieces(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Store -> client, with descriptors: more of the memory."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Store -> client: the memory is filled and checked."""

    digest: str


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Store -> client: no weights, and why."""

    code: Code
    message: str


class Resident(msgspec.Struct, frozen=True, array_like=True):
    """A model in memory. `clients`: how many processes have it mapped. `held`: it stays for preloading's sake."""

    name: str
    digest: str
    nbytes: int
    clients: int
    ready: bool
    held: bool = False


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """A source of loads: measured bandwidth in bytes a second (0: none measured), bytes waiting."""

    source: str
    bandwidth: float
    queued_bytes: int


class Shelved(msgspec.Struct, frozen=True, array_like=True):
    """The weights on a device. `free_bytes` and `total_bytes`: its memory, for all processes that use it."""

    device: str
    free_bytes: int
    total_bytes: int
    models: tuple[Resident, ...]


class Statistics(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Store -> client. `held_bytes` is what the cap is about; `free_bytes` of it wait to be used again.

    `huge_bytes` of it are in huge pages.
    """

    cap_bytes: int
    held_bytes: int
    free_bytes: int
    loads: int
    hits: int
    models: tuple[Resident, ...]
    rates: tuple[Rate, ...]
    huge_bytes: int = 0
    devices: tuple[Shelved, ...] = ()


class Hold(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Host -> store: load a model if need be and keep it as long as this socket is open; once more: another density.

    A wish, not a pin: models that functions ask for drive it out, the least dense first. Answered with `Holding` or
    `Refused`; the socket is closed when the model had to go. `device`: where it is to be; empty: in host memory.
    """

    model: str
    density: float
    device: str = ""


class Holding(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Store -> client: a model is in memory. `seconds` that its load took; 0 if it was there."""

    nbytes: int
    seconds: float


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Host -> store, once per socket: let go of a model as soon as nobody has it mapped. Answered with `Forgotten`.

    Wishes to hold it end with that. A pin is stronger, and so is whoever asks for it meanwhile.
    """

    model: str


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Store -> client: a model is out of memory, which the system has back. `gone` False: it stays."""

    gone: bool


class OnDevice(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Store -> client, with descriptors: a model on a device, all of it there and checked.

    The first descriptor is the device's memory, laid out like the host's; the others are host memory that has what
    the processor needs of the files (see `heads`). `accelerators`: module that opens the device.
    """

    manifest: Manifest
    folder: str
    digest: str
    device: str
    accelerators: str
    nbytes: int


FromClient = Ask | AskStatistics | Hold | Forget
FromStore = Progress | Attached | Pieces | Ready | Refused | Statistics | Holding | Forgotten | OnDevice

_encoder = msgspec.msgpack.Encoder()
_from_client: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_from_store: msgspec.msgpack.Decoder[FromStore] = msgspec.msgpack.Decoder(FromStore)


def encode(message: FromClient | FromStore) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode_from_client(payload: bytes) -> FromClient:
    """Raises msgspec.DecodeError."""
    return _from_client.decode(payload)


def decode_from_store(payload: bytes) -> FromStore:
    """Raises msgspec.DecodeError."""
    return _from_store.decode(payload)
