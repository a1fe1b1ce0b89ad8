"""Cancellation and credit of a task, without a container."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dataflower.channel.pace import Pace
from dataflower.container import nudge
from dataflower.container.failure import Cancelled
from dataflower.container.running import RunningTask
from dataflower.wire import RunTask


@pytest.fixture
def listening() -> Iterator[None]:
    """The thread of the test can be nudged."""
    before = signal.getsignal(signal.SIGURG)
    nudge.listen()
    yield
    signal.signal(signal.SIGURG, before)


def new_task(items: int = 0, nbytes: int = 0) -> RunningTask:
    return RunningTask(RunTask(1, (), credit_items=items, credit_bytes=nbytes), 0.0)


def test_credit_counts_items_and_bytes_from_the_start() -> None:
    task = new_task(2, 100)
    task.emitted_items, task.emitted_bytes = 1, 99
    assert task.has_credit()
    task.emitted_bytes = 100
    assert not task.has_credit()
    task.grant(2, 101)
    assert task.has_credit()
    task.emitted_items = 2
    assert not task.has_credit()
    task.grant(1, 1)  # an older grant takes nothing back
    assert (task.granted_items, task.granted_bytes) == (2, 101)


def test_a_cancelled_task_does_not_enter_user_code() -> None:
    task = new_task()
    task.cancel("late")
    with pytest.raises(Cancelled, match="late"):
        task.enter_user()


def test_user_code_is_interrupted_at_once() -> None:
    task = new_task()
    canceller = threading.Timer(0, task.cancel, ("now",))
    with pytest.raises(Cancelled):  # noqa: PT012 - the loop has no end of its own
        task.enter_user()
        canceller.start()
        while True:
            pass
    with pytest.raises(Cancelled, match="now"):
        task.leave_user()
    canceller.join()


@pytest.mark.parametrize("wait", [lambda: time.sleep(600.0), lambda: threading.Event().wait(600.0)])
def test_user_code_is_interrupted_in_a_system_call(wait: Callable[[], object], listening: None) -> None:
    task = new_task()
    canceller = threading.Timer(0.05, task.cancel, ("now",))
    with pytest.raises(Cancelled):  # noqa: PT012 - it is to be interrupted in there
        task.enter_user()
        canceller.start()
        wait()
    with pytest.raises(Cancelled, match="now"):
        task.leave_user()
    canceller.join()


def test_a_signal_that_came_too_soon_is_sent_again(listening: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, send = [], nudge.send

    def lossy(thread: int) -> None:
        sent.append(thread)
        if len(sent) > 2:
            send(thread)

    monkeypatch.setattr(nudge, "send", lossy)
    task = new_task()
    canceller = threading.Timer(0.05, task.cancel, ("now",))
    with pytest.raises(Cancelled):  # noqa: PT012 - it is to be interrupted in there
        task.enter_user()
        canceller.start()
        time.sleep(60.0)
    with pytest.raises(Cancelled, match="now"):
        task.leave_user()
    canceller.join()
    assert len(sent) >= 3


def test_an_interruption_not_yet_delivered_is_taken_back() -> None:
    for _ in range(200):
        task = new_task()
        canceller = threading.Thread(target=task.cancel, args=("race",))
        try:
            canceller.start()
            task.enter_user()
            task.leave_user()
        except Cancelled:
            assert task.reason == "race"
        canceller.join()
        assert sum(range(1000)) == 499500  # nothing strikes here, in what would be the next task


def test_engine_code_is_never_interrupted() -> None:
    task = new_task()
    task.enter_user()
    task.leave_user()
    task.cancel("later")
    assert not task.interrupted
    with pytest.raises(Cancelled, match="later"):
        task.wait(lambda: False)


def test_waiting_ends_when_the_condition_holds() -> None:
    task = new_task(0, 10)
    granter = threading.Thread(target=task.grant, args=(1, 10))
    granter.start()
    task.wait(task.has_credit)
    granter.join()
    assert task.has_credit()


class NotedPace(Pace):
    """Notes what it is told, and asks the kernel for nothing."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def waits(self) -> None:
        self.noted.append("waits")

    def woken(self) -> None:
        self.noted.append("woken")


def test_the_thread_that_runs_the_task_is_prompt_while_it_waits() -> None:
    task = new_task()
    task.pace = pace = NotedPace()
    threading.Timer(0.01, lambda: task.grant(1, 1)).start()
    task.wait(task.has_credit)
    assert pace.noted == ["waits", "woken"]
    task.wait(task.has_credit)  # there is credit: nobody waits
    assert pace.noted == ["waits", "woken"]


def test_another_thread_that_waits_for_the_task_has_its_own_pace() -> None:
    task = new_task()
    task.pace = pace = NotedPace()
    other = threading.Thread(target=lambda: task.wait(task.has_credit))
    other.start()
    task.grant(1, 1)
    other.join(10)
    assert not other.is_alive()
    assert pace.noted == []
