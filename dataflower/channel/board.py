"""A container's board: a page that it shares with its host, so that what stands there costs no system call.

Two things that the container writes stand there, and outlive it:

* which task each of its threads has begun last; the host looks when the container is dead;
* a *report* that nobody waits for, since its task's outputs went straight to the next container. Whatever that one says
  of them makes the host look. The report is there before the outputs leave, and marked as *handed* after that: so it
  counts for something as soon as the receiver speaks of it, or else when the mark is there.

And two that the host writes:

* how often it has told the container to *stop* something. A thread that is about to begin a task waits until as many of
  those messages were heard, so that nothing begins that was cancelled before;
* slots of the container's memory that nobody reads any more, *returned* while it has no task. Whoever begins its next
  one takes them; so nobody is woken for them.

The host copies what it reads and checks it like a message, so whatever stands there can do it no harm. What was written
before a message left is seen by whoever got the message (a system call orders memory).
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Sequence

from dataflower.channel import seals

_ENTRY_BYTES = 8
_MOST_THREADS = 512
_POSTED, _HANDED, _TAKEN, _LENGTH, _STOPS, _RETURNED, _REGAINED = range(7)
"""Words at the beginning: how many reports were posted, handed on, taken by the host; bytes of the one that stands; how
many tasks the host has told to stop; how many slots it has returned, and how many of them were taken."""
_REPORT_AT = 7 * _ENTRY_BYTES
_RETURNS_AT = 4096
MOST_RETURNS = 32
"""So many slots may wait on the board to be taken; each takes two words, arena and slot."""
_BEGUN_AT = _RETURNS_AT + 2 * _ENTRY_BYTES * MOST_RETURNS
REPORT_BYTES = _RETURNS_AT - _REPORT_AT
"""Longer reports are not posted."""
HEED_S = 0.1
"""A message that takes longer is not waited for."""


def _entries(threads: int) -> int:
    return min(threads, _MOST_THREADS)


class Board:
    """The host's side. Owns the memory's descriptor, which a container is given a copy of; `close` it."""

    def __init__(self, threads: int) -> None:
        """For a container with so many threads that run tasks. Raises OSError."""
        nbytes = _BEGUN_AT + _ENTRY_BYTES * _entries(threads)
        self.descriptor = seals.make("dataflower-board", nbytes)
        try:
            seals.seal(self.descriptor, seals.RESIZE)
            self._memory: mmap.mmap | bytes = mmap.mmap(self.descriptor, nbytes)  # with a descriptor of its own
        except BaseException:
            os.close(self.descriptor)
            raise
        self._words = memoryview(self._memory)[:_REPORT_AT].cast("q")
        self._returns = memoryview(self._memory)[_RETURNS_AT:_BEGUN_AT].cast("q")
        self._seen = 0
        self._stops = 0
        self._returned = 0

    def stops(self) -> None:
        """The container is about to be told to stop a task."""
        if not self._words.readonly:
            self._stops += 1
            self._words[_STOPS] = self._stops

    def take(self, *, given: bool) -> bytes | None:
        """The report that stands there, once. `given`: the next container has it, as its own words prove."""
        words = self._words
        posted = words[_POSTED]
        if posted == self._seen or not (given or words[_HANDED] == posted):
            return None
        self._seen = posted
        length = words[_LENGTH]
        report = self._memory[_REPORT_AT : _REPORT_AT + length] if 0 < length <= REPORT_BYTES else b""
        if not words.readonly:
            words[_TAKEN] = posted
        return report

    def give_back(self, slots: Sequence[tuple[int, int]]) -> bool:
        """Leave slots for the container, which has no task, to take before its next; False: there is no room."""
        words, returns, count = self._words, self._returns, self._returned
        if words.readonly or count - words[_REGAINED] + len(slots) > MOST_RETURNS:
            return False
        for arena, slot in slots:
            place = 2 * (count % MOST_RETURNS)
            returns[place] = arena
            returns[place + 1] = slot
            count += 1
        self._returned = words[_RETURNED] = count
        return True

    def begun(self) -> frozenset[int]:
        """The last task of each thread that has had one. Believe only what else is known of."""
        entries = self._memory[_BEGUN_AT:]
        return frozenset(task for (task,) in struct.iter_unpack("q", entries) if task)

    def given(self) -> None:
        """The container has its copy of the descriptor. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def close(self) -> None:
        """Let go of the memory; what stands there now can be taken still. Idempotent."""
        self.given()
        memory = self._memory
        if isinstance(memory, mmap.mmap):
            self._memory = memory[:]
            self._words.release()
            self._returns.release()
            self._words = memoryview(self._memory)[:_REPORT_AT].cast("q")
            memory.close()


class BoardWriter:
    """The container's side. Takes over the descriptor."""

    def __init__(self, descriptor: int, threads: int) -> None:
        self._memory = mmap.mmap(descriptor, _BEGUN_AT + _ENTRY_BYTES * _entries(threads))
        os.close(descriptor)
        with memoryview(self._memory) as whole:
            self._words = whole[:_REPORT_AT].cast("q")
            self._returns = whole[_RETURNS_AT:_BEGUN_AT].cast("q")
            self._begun = whole[_BEGUN_AT:].cast("q")
        self._places: dict[int, int] = {}
        self._lock = threading.Lock()
        self._posted = 0
        self._stops = 0
        self._regained = 0
        self._heard = threading.Condition()

    def begin(self, thread: int, task: int) -> None:
        """A thread (by its identifier) begins with a task, from now on until it begins with another."""
        place = self._places.get(thread)
        if place is None:
            place = self._places[thread] = len(self._places) % len(self._begun)
        self._begun[place] = task

    def heard_stop(self) -> None:
        """A message to stop a task has been acted upon."""
        with self._heard:
            self._stops += 1
            self._heard.notify_all()

    def heed_stops(self) -> None:
        """Return when all messages to stop tasks that the host has sent so far have been acted upon."""
        if self._words[_STOPS] > self._stops:
            with self._heard:
                self._heard.wait_for(lambda: self._words[_STOPS] <= self._stops, HEED_S)

    def post(self, report: bytes) -> int:
        """Put up a report of which the next container is about to get the outputs; then say `handed` with the number.

        0 if it does not fit, or one that the host has not seen stands there still.
        """
        words = self._words
        with self._lock:
            if len(report) > REPORT_BYTES or words[_TAKEN] != self._posted or words[_HANDED] != self._posted:
                return 0
            self._memory[_REPORT_AT : _REPORT_AT + len(report)] = report
            words[_LENGTH] = len(report)
            self._posted += 1
            words[_POSTED] = self._posted
            return self._posted

    def handed(self, report: int) -> None:
        """The next container has the outputs."""
        self._words[_HANDED] = report

    @property
    def has_returns(self) -> bool:
        """Whether `take_returns` would give any."""
        return bool(self._words[_RETURNED] != self._regained)

    def take_returns(self) -> list[tuple[int, int]]:
        """(arena, slot) pairs that the host has returned, each once."""
        words, returns = self._words, self._returns
        with self._lock:
            places = [2 * (number % MOST_RETURNS) for number in range(self._regained, words[_RETURNED])]
            slots = [(returns[place], returns[place + 1]) for place in places]
            self._regained = words[_REGAINED] = self._regained + len(slots)
        return slots

    def close(self) -> None:
        """Let go of the memory; nothing may be written after that."""
        self._words.release()
        self._returns.release()
        self._begun.release()
        self._memory.close()
