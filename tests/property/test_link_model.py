"""Link against a deque, and against a peer that sends whatever it likes."""

import array
import contextlib
import os
import socket
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from dataflower.channel.link import INLINE_BYTES, Link
from dataflower.errors import Closed, EndOfStream, PeerGone, WouldBlock

_PAYLOADS = st.one_of(
    st.binary(max_size=20),
    st.builds(
        lambda size, first: bytes([first]) * size,
        st.integers(INLINE_BYTES - 2, INLINE_BYTES + 2),
        st.sampled_from([0, 0xC1]),
    ),
    st.builds(os.urandom, st.integers(100, 300_000)),
)


class LinkMachine(RuleBasedStateMachine):
    """Both directions of one pair."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[Link] = list(Link.pair())
        self.queues: list[deque[tuple[bytes, int]]] = [deque(), deque()]
        self.counts = [0, 0]
        self.open = [True, True]

    @rule(side=st.sampled_from([0, 1]), payload=_PAYLOADS, fds=st.integers(0, 3))
    def send(self, side: int, payload: bytes, fds: int) -> None:
        if not self.open[side]:
            with pytest.raises(Closed):
                self.ends[side].send_nowait(payload)
        elif not self.open[1 - side]:
            with pytest.raises(PeerGone):
                self.ends[side].send_nowait(payload)
        else:
            try:
                self.ends[side].send_nowait(payload, [1] * fds)
            except WouldBlock:
                assert self.queues[side]
            else:
                self.queues[side].append((payload, fds))
                self.counts[side] += 1

    @rule(side=st.sampled_from([0, 1]))
    def receive(self, side: int) -> None:
        queue = self.queues[1 - side]
        if not self.open[side]:
            with pytest.raises(Closed):
                self.ends[side].receive_nowait()
        elif queue:
            payload, fds = self.ends[side].receive_nowait()
            for fd in fds:
                os.close(fd)
            assert (payload, len(fds)) == queue.popleft()
        elif self.open[1 - side]:
            with pytest.raises(WouldBlock):
                self.ends[side].receive_nowait()
        else:
            with pytest.raises((EndOfStream, PeerGone)):
                self.ends[side].receive_nowait()

    @precondition(lambda self: all(self.open))
    @rule(side=st.sampled_from([0, 1]), non_blocking=st.booleans())
    def replace(self, side: int, non_blocking: bool) -> None:
        """Through its descriptor, as if it had come from elsewhere."""
        fd = self.ends[side].detach()
        os.set_blocking(fd, not non_blocking)
        self.ends[side] = Link(fd)

    @precondition(lambda self: all(self.open) and sum(self.counts) > 3)
    @rule(side=st.sampled_from([0, 1]))
    def close(self, side: int) -> None:
        self.ends[side].close()
        self.ends[side].close()
        self.open[side] = False
        self.queues[1 - side].clear()

    def teardown(self) -> None:
        for end in self.ends:
            end.close()


TestLink = LinkMachine.TestCase


@given(
    frame=st.one_of(
        st.binary(max_size=40), st.binary(max_size=9).map(lambda tail: b"\xc1\x01" + tail), st.just(b"x" * 70_000)
    ),
    fds=st.integers(0, 80),
)
def test_a_hostile_frame_gives_a_message_or_an_end_and_leaks_nothing(frame: bytes, fds: int) -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    with theirs:
        link = Link(mine)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1] * fds))] if fds else []
        theirs.sendmsg([frame], rights)
        received: list[int] = []
        with contextlib.suppress(PeerGone, EndOfStream):
            payload, received = link.receive_nowait()
            assert frame.endswith(payload)
        assert len(os.listdir("/proc/self/fd")) == before + len(received)
        for fd in received:
            os.close(fd)
        link.close()
