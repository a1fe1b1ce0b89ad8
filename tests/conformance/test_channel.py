"""The channel contract, with the far side in a thread, in a forked child, in a process of its own, on another host."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from network_bridge import bridged

from dataflower.channel.link import Link
from dataflower.errors import EndOfStream, PeerGone
from dataflower.testing.channel_suite import ChannelSuite, Near, closing, serve_until_error


class TestInOneProcess(ChannelSuite):
    @contextmanager
    def peer(self) -> Iterator[Link]:
        near, far = Link.pair()
        thread = threading.Thread(target=serve_until_error, args=(far,))
        thread.start()
        with closing(near):
            yield near
        thread.join()


class TestAcrossAFork(ChannelSuite):
    @contextmanager
    def peer(self) -> Iterator[Link]:
        near, far = Link.pair()
        child = os.fork()
        if not child:
            try:
                near.close()
                serve_until_error(far)
            finally:
                os._exit(0)
        far.close()
        with closing(near):
            yield near
        assert os.waitpid(child, 0) == (child, 0)


class TestAcrossAnExec(ChannelSuite):
    @contextmanager
    def peer(self) -> Iterator[Link]:
        near, far = Link.pair()
        code = "import sys; from dataflower.testing.channel_suite import *; serve_until_error(Link(int(sys.argv[1])))"
        child = subprocess.Popen([sys.executable, "-c", code, str(far.fileno())], pass_fds=[far.fileno()])
        far.close()
        with closing(near):
            yield near
        assert child.wait() == 0


class TestBetweenHosts(ChannelSuite):
    """The way between hosts: mirrored memory, and its bytes in streams over TCP."""

    @contextmanager
    def peer(self) -> Iterator[Link]:
        with bridged() as (near, far):
            thread = threading.Thread(target=serve_until_error, args=(far,))
            thread.start()
            with closing(near):
                yield near
            thread.join()

    def test_descriptors_ride_along(self, near: Near) -> None:
        """Only those of arenas do, as memory: no other descriptor means anything on another host."""
        reader, writer = os.pipe()
        with pytest.raises((EndOfStream, PeerGone)):
            near.relay(b"short", [writer])
        os.close(reader)
        os.close(writer)
