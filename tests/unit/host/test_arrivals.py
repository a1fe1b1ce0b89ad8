"""Tasks from another host: given out when all that came along was heard, and not if that took them back."""

from __future__ import annotations

from dataflower.host.arrivals import Arrivals
from dataflower.wire import RunBatch, RunTask


def run(task: int) -> RunTask:
    return RunTask(task, "i", (), 1, ())


def test_what_is_taken_back_at_once_is_never_given_out() -> None:
    given: list[tuple[int, RunTask | RunBatch]] = []
    arrivals = Arrivals(lambda number, message: given.append((number, message)))
    batch = RunBatch((run(3), run(4)))
    for number, message in ((1, run(1)), (1, run(2)), (2, run(1)), (2, batch)):
        arrivals.add(number, message)
    assert not given
    assert arrivals.take_back(1, (1, 5)) == (1,)
    assert arrivals.take_back(2, (3,)) == (), "batches stay whole"
    arrivals.give_out()
    assert given == [(1, run(2)), (2, run(1)), (2, batch)]
    assert arrivals.take_back(1, (2,)) == (), "it has gone"
    arrivals.give_out()
    assert len(given) == 3
