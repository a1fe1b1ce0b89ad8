"""Blocking, waking and closing of one link in one process."""

import os
import threading
from concurrent.futures import Future

import pytest

from dataflower.channel.link import MAX_FDS, Link
from dataflower.errors import Closed, EndOfStream, PeerGone


def _receivers(link: Link, count: int) -> tuple[list[threading.Thread], list[Future]]:
    futures: list[Future] = [Future() for _ in range(count)]

    def run(future: Future) -> None:
        try:
            future.set_result(link.receive()[0])
        except Exception as error:
            future.set_exception(error)

    threads = [threading.Thread(target=run, args=(future,)) for future in futures]
    for thread in threads:
        thread.start()
    return threads, futures


@pytest.fixture(params=[True, False], ids=["blocking", "non-blocking"])
def ends(request: pytest.FixtureRequest):
    near, far = Link.pair()
    for end in (near, far):
        os.set_blocking(end.fileno(), request.param)
    yield near, far
    near.close()
    far.close()


def test_each_message_goes_to_one_of_the_waiting_threads(ends: tuple[Link, Link]) -> None:
    near, far = ends
    threads, futures = _receivers(far, 4)
    for number in range(4):
        near.send(bytes([number]))
    assert sorted(future.result(10) for future in futures) == [bytes([number]) for number in range(4)]
    for thread in threads:
        thread.join()


def test_send_waits_for_room(ends: tuple[Link, Link]) -> None:
    near, far = ends
    sender = threading.Thread(target=lambda: [near.send(bytes([number]) * 60_000) for number in range(200)])
    sender.start()
    assert [far.receive()[0][0] for _ in range(200)] == list(range(200))
    sender.join()


def test_close_wakes_the_threads_that_wait_here(ends: tuple[Link, Link]) -> None:
    near, far = ends
    threads, futures = _receivers(far, 3)
    near.send(b"one of them runs, so the others wait or will")
    far.close()
    outcomes = [future.exception(10) or future.result() for future in futures]
    for thread in threads:
        thread.join()
    assert all(isinstance(outcome, (Closed, bytes)) for outcome in outcomes)
    assert far.fileno() == -1
    with pytest.raises(PeerGone):
        near.send(b"x")


def test_the_peers_end_comes_after_all_that_it_sent(ends: tuple[Link, Link]) -> None:
    near, far = ends
    near.send(b"first")
    far.send(b"never read")
    near.send(b"")
    near.close()
    assert [far.receive()[0] for _ in range(2)] == [b"first", b""]
    with pytest.raises(PeerGone):  # it left without having read everything
        far.receive()


def test_an_end_in_good_order(ends: tuple[Link, Link]) -> None:
    near, far = ends
    near.close()
    for _ in range(2):
        with pytest.raises(EndOfStream):
            far.receive()


def test_closing_a_copy_that_was_passed_on_leaves_the_connection_alone() -> None:
    near, far = Link.pair()
    passed = Link(os.dup(far.fileno()))
    far.close()
    near.send(b"still there")
    assert passed.receive() == (b"still there", [])
    moved = Link(passed.detach())
    passed.close()
    with pytest.raises(Closed):
        passed.receive()
    near.send(b"and still")
    assert moved.receive() == (b"and still", [])
    statistics = near.statistics()
    assert (statistics.sent, statistics.sent_bytes, statistics.spilled) == (2, 20, 0)
    near.close()
    moved.close()


def test_too_many_descriptors_are_the_senders_error() -> None:
    near, far = Link.pair()
    near.send(b"x" * 100_000, [0] * MAX_FDS)
    _, fds = far.receive()
    for fd in fds:
        os.close(fd)
    assert len(fds) == MAX_FDS
    with pytest.raises(ValueError, match="64 are allowed"):
        near.send(b"x", [0] * (MAX_FDS + 1))
    near.close()
    far.close()
