"""One contract for moving bytes between two sides, whatever separates them.

    class TestAcrossAFork(ChannelSuite):
        @contextmanager
        def peer(self) -> Iterator[Link]:
            ...  # run `serve(link)` somewhere else, yield the other end, stop it

The near side owns an arena and sends values; the far side (`serve`) decodes them and sends them on, keeps views, and
tells when they die.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest

from dataflower.channel.arena import Arena
from dataflower.channel.link import INLINE_BYTES, Link
from dataflower.channel.tensor import decode, encode
from dataflower.channel.views import Views
from dataflower.errors import EndOfStream, PeerGone, WouldBlock
from dataflower.wire import TensorRef, Value

_CAP_BYTES = 64 << 20


class Attach(msgspec.Struct, frozen=True, array_like=True, tag="attach"):
    """Carries the descriptor of an arena."""

    arena: int
    nbytes: int


class PassOn(msgspec.Struct, frozen=True, array_like=True, tag="pass"):
    """Decode and send back encoded anew; `keep` the decoded value until `Drop`."""

    value: Value
    keep: bool = False


class Drop(msgspec.Struct, frozen=True, array_like=True, tag="drop"):
    """Forget what was kept. No answer but `Gone`."""


class Relay(msgspec.Struct, frozen=True, array_like=True, tag="relay"):
    """Answer the next message, and its descriptors, as they are."""


class Passed(msgspec.Struct, frozen=True, array_like=True, tag="passed"):
    """Answer to `PassOn`: the value, whether user code could write to it, and which of its slots are still viewed."""

    value: Value
    writeable: bool
    held: tuple[tuple[int, int], ...]


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Answer to a request that did not hold together."""

    reason: str


class Gone(msgspec.Struct, frozen=True, array_like=True, tag="gone"):
    """The last views of these slots died."""

    slots: tuple[tuple[int, int], ...]


_encode = msgspec.msgpack.Encoder().encode
_request = msgspec.msgpack.Decoder(Attach | PassOn | Drop | Relay).decode
_answer = msgspec.msgpack.Decoder(Passed | Refused | Gone).decode


def serve(link: Link) -> None:
    """The far side: answers until the near side closes, then closes its own end."""
    views = Views(lambda slots: link.send(_encode(Gone(slots))))  # only sends, and nothing else sends meanwhile
    kept: list[Any] = []
    try:
        while True:
            payload, fds = link.receive()
            match _request(payload):
                case Relay():
                    payload, fds = link.receive()
                    link.send(payload, fds)
                    for fd in fds:
                        os.close(fd)
                case Drop():
                    kept.clear()
                case Attach(arena, nbytes):
                    views.attach(arena, nbytes, fds[0])
                case PassOn(value, keep):
                    _pass_on(link, views, kept, value, keep)
    except (EndOfStream, PeerGone):
        pass
    finally:
        kept.clear()
        views.close()
        link.close()


def serve_until_error(link: Link) -> None:
    """`serve`, ended also by a request that breaks the protocol."""
    with contextlib.suppress(msgspec.MsgspecError):
        serve(link)


def _pass_on(link: Link, views: Views, kept: list[Any], value: Value, keep: bool) -> None:
    try:
        decoded = decode(value, views)
    except ValueError as error:
        link.send(_encode(Refused(str(error))))
        return
    # Big arrays must be found in `views`: this arena announces nothing, so a copy into it would not be readable.
    scratch = Arena(99, cap_bytes=_CAP_BYTES, announce=lambda arena, nbytes, fd: None)
    again = encode(decoded, arena=scratch, views=views)
    writeable = any(array.flags.writeable for array in _arrays(decoded))
    if keep:
        kept.append(decoded)
    del decoded
    held = views.held([(ref.arena, ref.slot) for ref in value.tensors], watch=False)
    link.send(_encode(Passed(again, writeable, held)))
    views.watch(held)
    scratch.close()


def _arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _arrays(part)


class Near:
    """The near side of a test: an arena of its own whose segments are passed to the far side."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.views = Views()
        self.arena = Arena(7, cap_bytes=_CAP_BYTES, announce=self._announce)

    def _announce(self, arena: int, nbytes: int, fd: int) -> None:
        self.views.attach(arena, nbytes, os.dup(fd))
        self.link.send(_encode(Attach(arena, nbytes)), [fd])

    def ask(self, value: Value, *, keep: bool = False) -> Passed | Refused:
        """Have a value passed on."""
        self.link.send(_encode(PassOn(value, keep)))
        answer = self.hear()
        assert not isinstance(answer, Gone)
        return answer

    def hear(self) -> Passed | Refused | Gone:
        """The next thing that the far side says."""
        answer: Passed | Refused | Gone = _answer(self.link.receive()[0])
        return answer

    def relay(self, payload: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
        """A message there and back."""
        self.link.send(_encode(Relay()))
        self.link.send(payload, fds)
        return self.link.receive()

    def close(self) -> None:
        """Let go of everything."""
        self.link.close()
        self.views.close()
        self.arena.close()


def same(left: Any, right: Any) -> bool:
    """Equal in value, type, dtype and shape; NaN equals NaN; tuples equal lists."""
    if isinstance(left, np.ndarray):
        return (
            isinstance(right, np.ndarray)
            and left.dtype.newbyteorder("=") == right.dtype.newbyteorder("=")
            and left.shape == right.shape
            and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
        )
    if isinstance(left, (list, tuple)):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return isinstance(right, dict) and list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    return type(left) is type(right) and bool(left == right)


VALUES: tuple[Any, ...] = (
    None,
    True,
    -(2**63),
    2**64 - 1,
    float("nan"),
    "naïve \N{SNOWMAN}",
    b"\xc1\x00\xff",
    [],
    {"a": [1, (2, 3), {"b": None}]},
    np.array(3.5),
    np.zeros((0, 3), np.int16),
    np.array([np.nan, np.inf, -0.0]),
    np.asfortranarray(np.arange(12000, dtype=np.int32).reshape(100, 120)),
    np.arange(9000, dtype=">f8")[::-2],
    {"boxes": [np.ones((2, 2), bool), np.arange(50000, dtype=np.float16)], "text": "x" * 70000},
)
"""What any channel must carry."""


class ChannelSuite:
    """The tests. A subclass says where the far side runs."""

    def peer(self) -> AbstractContextManager[Link]:
        """Run `serve` on one end of a link; yields the other end; on leaving, the far side has ended."""
        raise NotImplementedError

    @pytest.fixture
    def near(self) -> Iterator[Near]:
        """Connected to a far side."""
        with self.peer() as link:
            near = Near(link)
            try:
                yield near
            finally:
                near.close()

    def test_a_value_comes_back_the_same(self, near: Near) -> None:
        """Through encode, a message, decode, and all of it again."""
        for value in VALUES:
            sent = encode(value, arena=near.arena, views=near.views)
            answer = near.ask(sent)
            assert isinstance(answer, Passed)
            if sent.spilled is not None:  # the far side's copy of a long body lies in an arena that nobody can see
                assert answer.value.spilled is not None
                assert same(value, decode(sent, near.views))
            else:
                assert same(value, decode(answer.value, near.views))
            assert not answer.writeable

    def test_a_tensor_is_passed_on_by_reference(self, near: Near) -> None:
        """The far side names the very bytes that it got."""
        sent = encode(np.arange(1 << 20, dtype=np.int64), arena=near.arena, views=None)
        answer = near.ask(sent)
        assert isinstance(answer, Passed)
        assert answer.value.tensors == sent.tensors

    def test_an_array_made_in_the_arena_is_not_copied(self, near: Near) -> None:
        """And a part of it names its slot."""
        array = near.arena.array((1000, 1000), np.float32)
        array[:] = 4
        sent = encode(array[10:20], arena=near.arena, views=None)
        assert near.arena.statistics().slots == 1
        assert sent.tensors[0].offset == sent.tensors[0].slot + 40000
        answer = near.ask(sent)
        assert isinstance(answer, Passed)
        assert decode(answer.value, near.views).sum() == 40000

    def test_a_kept_view_is_reported_and_its_end_too(self, near: Near) -> None:
        """So that a slot is not recycled under a reader."""
        sent = encode(np.zeros(100000), arena=near.arena, views=None)
        slot = (sent.tensors[0].arena, sent.tensors[0].slot)
        answer = near.ask(sent, keep=True)
        assert isinstance(answer, Passed)
        assert answer.held == (slot,)
        near.link.send(_encode(Drop()))
        assert near.hear() == Gone((slot,))
        assert near.ask(sent) == Passed(sent, False, ())

    def test_a_released_slot_is_used_again(self, near: Near) -> None:
        """The first touch of memory is what costs."""
        seen = set()
        for number in range(20):
            sent = encode(np.full(200000, number), arena=near.arena, views=None)
            answer = near.ask(sent)
            assert isinstance(answer, Passed)
            assert decode(answer.value, near.views)[-1] == number
            seen.add((sent.tensors[0].arena, sent.tensors[0].slot))
            near.arena.release([(sent.tensors[0].arena, sent.tensors[0].slot)])
        assert len(seen) == 1
        assert near.arena.statistics().used_bytes == 0

    def test_messages_of_any_size_arrive_whole_and_in_order(self, near: Near) -> None:
        """Around the limits in particular."""
        for size in (0, 1, 2, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 3_000_000):
            for payload in (b"x" * size, b"\xc1" * size):
                assert near.relay(payload, []) == (payload, [])

    def test_many_tensors_at_once_come_right_and_in_order(self, near: Near) -> None:
        """Requests that wait for each other, of all sizes, and slots that are written again meanwhile."""
        sizes = [1, 0, 9000, 300_000, 2, 1 << 20, 50_000, 8193] * 5
        for _ in range(3):
            sent = [
                encode(np.full(n, n + i, np.int32), arena=near.arena, views=near.views) for i, n in enumerate(sizes)
            ]
            for value in sent:
                near.link.send(_encode(PassOn(value)))
            for i, (n, value) in enumerate(zip(sizes, sent, strict=True)):
                answer = near.hear()
                assert isinstance(answer, Passed)
                assert answer.value.tensors == value.tensors
                assert same(decode(answer.value, near.views), np.full(n, n + i, np.int32))
                near.arena.release([(ref.arena, ref.slot) for ref in value.tensors])
        assert near.arena.statistics().slots == 0

    def test_a_slow_reader_loses_nothing(self, near: Near) -> None:
        """More is sent than all buffers hold before anything is read."""
        payloads = [bytes([number % 256]) * INLINE_BYTES for number in range(600)]

        def send() -> None:
            for payload in payloads:
                near.link.send(_encode(Relay()))
                near.link.send(payload)

        sender = threading.Thread(target=send)
        sender.start()
        sender.join(0.2)
        for payload in payloads:
            assert near.link.receive() == (payload, [])
        sender.join()

    def test_descriptors_ride_along(self, near: Near) -> None:
        """With short and with spilled messages."""
        for payload in (b"", b"short", b"x" * (INLINE_BYTES * 2)):
            reader, writer = os.pipe()
            back, fds = near.relay(payload, [writer])
            os.close(writer)
            os.write(fds[0], b"hello")
            os.close(fds[0])
            assert (back, len(fds), os.read(reader, 9), os.read(reader, 9)) == (payload, 1, b"hello", b"")
            os.close(reader)

    def test_a_reference_outside_the_arena_is_refused(self, near: Near) -> None:
        """Whatever it says, nothing outside is read."""
        slot = near.arena.allocate(4096)
        nbytes = near.arena.statistics().reserved_bytes
        for ref in (
            TensorRef(slot.arena, 0, nbytes - 4, 8, "UINT8", (8,)),
            TensorRef(slot.arena, 0, -8, 8, "UINT8", (8,)),
            TensorRef(slot.arena, 0, 0, 8, "UINT8", (9,)),
            TensorRef(slot.arena, 0, 0, 8, "UINT8", (-2, -4)),
            TensorRef(slot.arena, 8, 0, 8, "UINT8", (8,)),
            TensorRef(slot.arena, 0, 0, 8, "FP7", (8,)),
            TensorRef(slot.arena + 1, 0, 0, 8, "UINT8", (8,)),
        ):
            assert isinstance(near.ask(Value(b"\xd4\x01\x00", (ref,))), Refused)
        for body in ("", "d40101", "d401ff", "c7010900", "d40200", "810101", "9201"):
            assert isinstance(near.ask(Value(bytes.fromhex(body), ())), Refused)
        assert near.ask(Value(b"\xc0", ())) == Passed(Value(b"\xc0", ()), False, ())

    def test_nothing_there_would_block_and_the_end_is_told(self, near: Near) -> None:
        """`receive_nowait` never waits, `receive` ends when the far side does."""
        with pytest.raises(WouldBlock):
            near.link.receive_nowait()
        near.link.send(b"\x90")  # breaks the far side's protocol, which therefore ends
        with pytest.raises((EndOfStream, PeerGone)):
            near.link.receive()


@contextmanager
def closing(link: Link) -> Iterator[Link]:
    """Close the link at the end."""
    try:
        yield link
    finally:
        link.close()
