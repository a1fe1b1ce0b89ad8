"""The clients' side of a host's store: weights that are there are mapped in a millisecond, others are waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.checkpoint import protocol
from dataflower.checkpoint.layout import pages
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.region import Mapping
from dataflower.clock import SystemClock
from dataflower.errors import (
    Code,
    DataflowerError,
    EndOfStream,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PeerGone,
    ResourceExhausted,
    Unavailable,
    WeightsInvalid,
)

_monotonic = SystemClock().monotonic

VARIABLE = wire.STORE_VARIABLE
"""Environment variable that names the door: `DESCRIPTOR:INODE` of an open socket."""
ATTEMPTS = 3
"""A store that dies under a load is started again by its host; whoever waited asks again, so often."""

OnProgress = Callable[[int, int], object]
"""Told (bytes that have arrived, all bytes) while a load goes on."""
OnPrefix = Callable[[Mapping, Manifest, int], object]
"""Told that so many bytes from the memory's beginning are there and checked."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Weights of the store in this process. When they are unmapped, its socket is closed."""

    manifest: Manifest
    mapping: Mapping
    folder: Path
    digest: str
    was_there: bool = False
    """It was in memory before it was asked for."""
    map_s: float = 0.0
    """Seconds that mapping it took."""


def door_name(fd: int) -> str:
    """What `VARIABLE` says of a door that children inherit as descriptor `fd`."""
    return f"{fd}:{os.fstat(fd).st_ino}"


def find_door() -> int | None:
    """Descriptor of the door to this host's store (not the caller's to close), None where there is no store.

    The inode tells whether the descriptor is still that socket: what a function executes inherits the variable
    alone.
    """
    number, _, inode = os.environ.get(VARIABLE, "").partition(":")
    if not (number.isdigit() and inode.isdigit()):
        return None
    try:
        return int(number) if os.fstat(int(number)).st_ino == int(inode) else None
    except OSError:
        return None


def attach(
    door: int, model: str, on_progress: OnProgress | None = None, on_prefix: OnPrefix | None = None
) -> Attachment:
    """Weights of a model from the store behind `door`; blocks until they are there and checked.

    With `on_prefix` the memory is mapped before it is filled, and told of as it fills: what comes next in the line
    (a device) can work on the beginning while the rest is being read. What it made must be thrown away if this raises.

    Raises:
        DataflowerError: the store's refusal: no such model, damaged files, no room.
        Unavailable: the store can't be reached, or died again and again.
    """
    for _ in range(ATTEMPTS):
        try:
            return _Session(enter(door), on_progress, on_prefix).run(model)
        except (EndOfStream, PeerGone):
            continue
    raise Unavailable(f"the store of weights ended while {model} was asked for (its log may say why)")


def statistics(door: int) -> protocol.Statistics:
    """What the store holds and how fast it loads. Raises Unavailable."""
    link = enter(door)
    try:
        link.send(protocol.encode(protocol.AskStatistics()))
        answer = protocol.decode_from_store(link.receive()[0])
    except (EndOfStream, PeerGone) as error:
        raise Unavailable("the store of weights ended") from error
    finally:
        link.close()
    assert isinstance(answer, protocol.Statistics)
    return answer


def enter(door: int) -> Link:
    """A socket of one's own to the store. Raises Unavailable if the host has gone."""
    ours, theirs = Link.pair()
    way = Link(os.dup(door))
    try:
        way.send(wire.encode(wire.Knock(protocol.VERSION)), (theirs.fileno(),))
    except PeerGone as error:
        ours.close()
        raise Unavailable("the store of weights can't be reached: its host has gone") from error
    finally:
        theirs.close()
        way.close()
    return ours


def refusal(code: Code, message: str) -> DataflowerError:
    """The error that a store's refusal stands for."""
    kinds = (NotFound, FailedPrecondition, ResourceExhausted, Unavailable, InvalidArgument)
    kind = next((kind for kind in kinds if kind.code is code), DataflowerError)
    return (WeightsInvalid if kind is FailedPrecondition else kind)(message, code=code)


class _Session:
    """One conversation about one model. The socket lives as long as the memory is mapped."""

    def __init__(self, link: Link, on_progress: OnProgress | None, on_prefix: OnPrefix | None) -> None:
        self._link = link
        self._on_progress, self._on_prefix = on_progress, on_prefix
        self._attached: protocol.Attached | None = None
        self._mapping: Mapping | None = None
        self._pieces: list[int] = []
        self._was_there = True
        self._map_s = 0.0

    def run(self, model: str) -> Attachment:
        try:
            self._link.send(protocol.encode(protocol.Ask(model, self._on_prefix is not None)))
            while True:
                payload, fds = self._link.receive()
                self._pieces += fds
                done = self._take(protocol.decode_from_store(payload))
                if done is not None:
                    return done
        except BaseException:
            if self._mapping is None:
                self._link.close()
            raise
        finally:
            self._close_pieces()

    def _take(self, message: protocol.FromStore) -> Attachment | None:
        match message:
            case protocol.Attached():
                self._attached = message
                self._map()
            case protocol.Pieces():
                self._map()
            case protocol.Progress(arrived, total, prefix):
                self._was_there = False
                if self._on_progress is not None:
                    self._on_progress(arrived, total)
                self._tell(prefix)
            case protocol.Refused(code, text):
                raise refusal(code, text)
            case protocol.Ready(digest):
                assert self._attached is not None
                assert self._mapping is not None
                self._tell(self._mapping.nbytes)
                manifest, folder = self._attached.manifest, Path(self._attached.folder)
                return Attachment(manifest, self._mapping, folder, digest, self._was_there, self._map_s)
            case _:
                raise PeerGone("the store said what it should not")
        return None

    def _map(self) -> None:
        """Once all pieces have come."""
        assert self._attached is not None
        if len(self._pieces) == self._attached.pieces:
            begun = _monotonic()
            nbytes = sum(pages(file.nbytes) for file in self._attached.manifest.files)
            self._mapping = Mapping(self._pieces, nbytes, self._link.close)
            self._close_pieces()
            self._map_s = _monotonic() - begun

    def _close_pieces(self) -> None:
        for fd in self._pieces:
            os.close(fd)
        self._pieces = []

    def _tell(self, prefix: int) -> None:
        if self._on_prefix is not None and self._mapping is not None and self._attached is not None:
            self._on_prefix(self._mapping, self._attached.manifest, prefix)
