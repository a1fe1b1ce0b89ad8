"""Either side is killed at a bad moment: nothing is lost that was handed over, nothing is left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from dataflower.channel.arena import Arena
from dataflower.channel.link import Link
from dataflower.channel.tensor import decode, encode
from dataflower.channel.views import Views
from dataflower.errors import EndOfStream, PeerGone, WouldBlock
from dataflower.wire import AttachArena, Value, decode_to_container
from dataflower.wire import encode as pack

pytestmark = pytest.mark.fault


def _child(far: Link, near: Link, body: Callable[[Link], None]) -> int:
    """Fork; the child runs `body` on its end and then stops, until its death."""
    pid = os.fork()
    if not pid:
        try:
            near.close()
            body(far)
            far.send(b"ready")
            signal.raise_signal(signal.SIGSTOP)
        finally:
            os._exit(1)
    far.close()
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _drain(link: Link) -> tuple[list[bytes], list[int]]:
    messages, fds = [], []
    while True:
        try:
            payload, more = link.receive()
        except (EndOfStream, PeerGone):
            return messages, fds
        messages.append(payload)
        fds += more


def test_what_was_handed_over_survives_its_sender_and_so_do_its_descriptors() -> None:
    near, far = Link.pair()

    def body(link: Link) -> None:
        arena = Arena(7, cap_bytes=1 << 24, announce=lambda a, n, fd: link.send(pack(AttachArena(a, n)), [fd]))
        value = encode(np.arange(100000), arena=arena, views=None)
        link.send(pack(value))

    pid = _child(far, near, body)
    near.send(b"never read, so the kernel resets the connection when the reader dies")
    payload, fds = near.receive()
    announced = decode_to_container(payload)
    assert isinstance(announced, AttachArena)
    views = Views()
    views.attach(announced.arena, announced.nbytes, fds[0])
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    _kill(pid)
    (value, ready), more = _drain(near)
    assert (ready, more) == (b"ready", [])
    view = decode(msgspec.msgpack.decode(value, type=Value), views)
    assert view[-1] == 99999
    del view
    views.close()
    near.close()


@pytest.mark.parametrize("size", [10, 60_000, 500_000])
def test_sender_killed_while_it_sends_leaves_whole_messages_only(size: int) -> None:
    near, far = Link.pair()

    def body(link: Link) -> None:
        link.send(b"ready")
        number = 0
        while True:  # ends by being killed, mostly while it waits for room
            link.send(number.to_bytes(4, "little") * (size // 4), [0])
            number += 1

    pid = _child(far, near, body)
    assert near.receive() == (b"ready", [])
    for number in range(20):
        payload, fds = near.receive()
        assert payload == number.to_bytes(4, "little") * (size // 4)
        for fd in fds:
            os.close(fd)
    _kill(pid)
    messages, fds = _drain(near)
    for fd in fds:
        os.close(fd)
    for number, payload in enumerate(messages, 20):
        assert payload == number.to_bytes(4, "little") * (size // 4)
    near.close()


def test_reader_gone_with_descriptors_in_flight() -> None:
    near, far = Link.pair()
    pid = _child(far, near, lambda link: None)
    assert near.receive() == (b"ready", [])
    reader, writer = os.pipe()
    for _ in range(5):
        near.send(b"x" * 100_000, [writer])
    os.close(writer)
    _kill(pid)
    assert os.read(reader, 1) == b""  # the kernel closed the copies that were never received
    os.close(reader)
    for _ in range(2):
        with pytest.raises(PeerGone):
            near.send(b"x" * 100_000, [0])
    with pytest.raises((EndOfStream, PeerGone)):
        near.receive()
    near.close()


def test_a_blocked_sender_is_told_of_its_readers_death() -> None:
    near, far = Link.pair()
    pid = _child(far, near, lambda link: None)
    assert near.receive() == (b"ready", [])
    with contextlib.suppress(WouldBlock):
        while True:
            near.send_nowait(b"x" * 60_000, [0])
    outcome: list[Exception] = []

    def send() -> None:
        try:
            near.send(b"x" * 60_000)
        except PeerGone as error:
            outcome.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    _kill(pid)
    thread.join()
    assert len(outcome) == 1
    near.close()


def test_closing_unread_descriptors_leaks_none() -> None:
    near, far = Link.pair()
    for _ in range(10):
        near.send(b"x" * 100_000, [0, 1])
    before = set(os.listdir("/proc/self/fd"))
    far.close()
    near.close()
    assert len(before - set(os.listdir("/proc/self/fd"))) >= 2


def test_a_spill_that_is_not_sealed_is_refused() -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(mine)
    for size in (70_000, 1 << 62):
        fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 70_000)
        socket.send_fds(theirs, [b"\xc1\x01" + size.to_bytes(8, "little")], [fd])
        os.close(fd)
        with pytest.raises(PeerGone, match="broken frame"):
            link.receive()
    theirs.close()
    link.close()


_OUT_OF_DESCRIPTORS = """
import os, resource
from dataflower.channel.link import Link
from dataflower.errors import PeerGone
near, far = Link.pair()
near.send(b"hello", [0, 1, 2])
near.send(b"x" * 100000)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1,) * 2)
count = len(os.listdir("/proc/self/fd"))
try:
    far.receive()
except PeerGone as error:
    assert "cut off" in str(error), error
    assert len(os.listdir("/proc/self/fd")) == count
    assert len(far.receive()[0]) == 100000
    print("fine")
"""


def test_running_out_of_descriptors_leaks_none() -> None:
    done = subprocess.run([sys.executable, "-c", _OUT_OF_DESCRIPTORS], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


_TOO_MANY_UNDER_WAY = """
import errno, resource, socket, time
from dataflower.channel.link import Link
from dataflower.container import kernel
from dataflower.errors import WouldBlock
near, far = Link.pair()
flying = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
kernel.drop_capabilities()  # who has them may send as many as he likes
flying[0].setblocking(False)
try:
    while True:
        socket.send_fds(flying[0], [b"x"], [0] * 250)
except OSError as error:
    assert error.errno == errno.ETOOMANYREFS, error
try:
    near.send_nowait(b"hello", [0])
except WouldBlock:
    pass
else:
    raise AssertionError("it was sent")
sleep, slept = time.sleep, []
def land(seconds):
    slept.append(seconds)
    for end in flying:
        end.close()
    sleep(seconds)
time.sleep = land
near.send(b"x" * 100000, [0])  # in a memfd: a descriptor itself
assert len(far.receive()[0]) == 100000
assert slept
print("fine")
"""


def test_who_may_send_no_descriptors_now_waits_until_others_have_arrived() -> None:
    """The kernel counts them for all processes of a user: those of other containers are in the way of this one's."""
    done = subprocess.run([sys.executable, "-c", _TOO_MANY_UNDER_WAY], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


_CROWDED_OUTBOX = (
    _TOO_MANY_UNDER_WAY[: _TOO_MANY_UNDER_WAY.index("try:\n    near.send_nowait")]
    + """
import asyncio
from dataflower.host.links import Outbox
async def main():
    loop = asyncio.get_running_loop()
    outbox = Outbox(loop, near)
    outbox.send(b"crowded", [0])
    outbox.send(b"next")
    assert outbox.statistics().waiting == 2
    began = time.process_time()
    await asyncio.sleep(.2)
    used = time.process_time() - began
    assert outbox.statistics().waiting == 2
    assert used < .1, f"{used} s of computing in .2 s of waiting"
    for end in flying:
        end.close()
    payload, descriptors = await asyncio.to_thread(far.receive)
    assert (payload, len(descriptors)) == (b"crowded", 1)
    assert await asyncio.to_thread(far.receive) == (b"next", [])
    outbox.close()
asyncio.run(main())
print("fine")
"""
)


def test_what_waits_for_other_descriptors_goes_out_later_and_in_order_and_costs_little() -> None:
    """The socket is writable all the while: whoever waits for that would spin."""
    done = subprocess.run([sys.executable, "-c", _CROWDED_OUTBOX], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")
