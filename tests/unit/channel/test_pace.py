"""Threads that wait ask for short slices, and those that compute ask for none."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import threading
from collections.abc import Callable

import pytest

from dataflower.channel import pace
from dataflower.channel.pace import PATIENT_AFTER_S, SHORT_S, Pace

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}


def slice_ns() -> int:
    """What the calling thread has now; 0 where the kernel tells of none."""
    attributes = ctypes.create_string_buffer(56)
    number = ctypes.c_long(SCHED_GETATTR[platform.machine()])
    assert ctypes.CDLL(None).syscall(number, 0, attributes, 56, 0) == 0
    return int(struct.unpack_from("=IIQiIQ", attributes)[5])


def in_thread(step: Callable[[], object]) -> list[object]:
    """What `step` gave, run in a thread of its own, so that the test's own slices stay as they are."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(step()))
    thread.start()
    thread.join()
    return found


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the kernel was asked for, in order."""
    asked: list[str] = []
    monkeypatch.setattr(pace, "prompt", lambda: asked.append("prompt"))
    monkeypatch.setattr(pace, "patient", lambda: asked.append("patient"))
    return asked


def test_brief_tasks_cost_no_call(said: list[str]) -> None:
    own = Pace()
    for _ in range(3):
        own.begin()
        own.ran(PATIENT_AFTER_S / 2)
    assert said == ["prompt"]


def test_a_long_task_is_expected_after_a_long_one_and_waiting_is_prompt(said: list[str]) -> None:
    own = Pace()
    for seconds in (1.0, 1.0, 0.0, 0.0):
        own.begin()
        own.ran(seconds)
    assert said == ["prompt", "patient", "prompt", "patient", "prompt"]


def test_a_task_that_goes_on_is_patient_until_its_end(said: list[str]) -> None:
    own = Pace()
    own.begin()
    own.goes_on()
    own.goes_on()
    own.ran(0.0)
    own.begin()
    assert said == ["prompt", "patient", "prompt"]


def test_a_task_that_waits_is_prompt_until_it_is_woken(said: list[str]) -> None:
    own = Pace()
    own.begin()
    own.goes_on()  # it is not known what a generator does between two items
    own.waits()
    assert said == ["prompt", "patient", "prompt"]
    own.woken()  # nor what it does with the first that comes in
    assert said[3:] == ["patient"]


def test_who_does_little_between_waits_stays_prompt_and_who_computes_does_not(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1.0]
    monkeypatch.setattr(pace, "_monotonic", lambda: now[0])
    own = Pace()
    own.begin()

    def stretch(seconds: float) -> list[str]:
        del said[:]
        own.waits()
        own.woken()
        now[0] += seconds
        return list(said)

    stretch(PATIENT_AFTER_S / 2)
    assert stretch(PATIENT_AFTER_S / 2) == ["prompt"]
    assert stretch(PATIENT_AFTER_S) == []
    assert stretch(PATIENT_AFTER_S / 2) == ["patient"]  # the last stretch was long
    assert stretch(0.0) == ["prompt"]


def test_a_stretch_does_not_reach_into_the_next_task(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    monkeypatch.setattr(pace, "_monotonic", lambda: now[0])
    own = Pace()
    for _ in range(3):
        own.begin()
        own.waits()
        own.woken()
        own.waits()
        own.woken()
        own.ran(PATIENT_AFTER_S / 2)
        now[0] += 10.0  # idle
    assert said == ["prompt", "patient", "prompt"]


def test_slices_of_a_real_thread_change_and_are_not_inherited() -> None:
    def story() -> tuple[int, int, int, int]:
        usual = slice_ns()
        pace.prompt()
        short = slice_ns()
        (inherited,) = in_thread(slice_ns)
        pace.patient()
        assert isinstance(inherited, int)
        return usual, short, inherited, slice_ns()

    (found,) = in_thread(story)
    assert isinstance(found, tuple)
    usual, short, inherited, after = found
    assert inherited == after == usual
    assert short in (round(SHORT_S * 1e9), usual)  # before Linux 6.12 the wish is not heard


def test_whose_scheduling_was_chosen_keeps_it() -> None:
    def story() -> tuple[int, int]:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        pace.prompt()
        return os.sched_getscheduler(0), slice_ns()

    (found,) = in_thread(story)
    assert isinstance(found, tuple)
    assert found[0] == os.SCHED_BATCH
    assert found[1] != round(SHORT_S * 1e9)


def test_nice_threads_stay_nice() -> None:
    def story() -> int:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
        pace.prompt()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert in_thread(story) == [7]
