"""Whoever could still reach an array is seen."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dataflower.container.ownership import is_sole_owner

kept: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    kept.clear()


def fresh() -> np.ndarray[Any, Any]:
    return np.ones((64, 64), np.float32)


def result(function: Callable[[], Any]) -> dict[str, Any]:
    return {"out": function()}


@pytest.mark.parametrize("make", [fresh, lambda: fresh() + fresh(), lambda: np.sin(fresh()), lambda: fresh().copy()])
def test_a_new_array_is_nobody_elses(make: Callable[[], Any]) -> None:
    ports = result(make)
    assert is_sole_owner(ports, "out")
    assert is_sole_owner(ports, "out")  # asking changes nothing
    again = ports["out"]
    assert not is_sole_owner(ports, "out")
    del again
    assert is_sole_owner(ports, "out")


def keeping(way: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[], Any]:
    def make() -> Any:
        array = fresh()
        kept.append(way(array))
        return array

    return make


@pytest.mark.parametrize(
    "way",
    [
        lambda array: array,
        lambda array: [array],
        lambda array: {"deep": (array,)},
        lambda array: array[1:],
        lambda array: array.T,
        lambda array: array.view(np.uint8),
        memoryview,
        lambda array: array.data,
        lambda array: array.ctypes,
        lambda array: array.ctypes.data_as(ctypes.c_void_p),
        lambda array: (ctypes.c_char * array.nbytes).from_buffer(array),
        lambda array: array.__dlpack__(),
        lambda array: array.flat,
        np.nditer,
        lambda array: np.broadcast(array, 1),
        lambda array: array.__setitem__,
        lambda array: lambda: array,
        weakref.ref,
        weakref.proxy,
        np.asarray,
        np.frombuffer,
    ],
)
def test_whoever_keeps_a_way_to_it_is_seen(way: Callable[[Any], Any]) -> None:
    assert not is_sole_owner(result(keeping(way)), "out")


def test_a_torch_tensor_over_it_is_seen() -> None:
    torch = pytest.importorskip("torch")
    assert not is_sole_owner(result(keeping(torch.from_numpy)), "out")


@pytest.mark.parametrize(
    "make",
    [
        lambda: fresh()[1:],
        lambda: fresh().T,
        lambda: np.frombuffer(bytearray(64), np.uint8),
        lambda: np.ma.masked_array(fresh()),
        lambda: fresh().view(np.recarray),
        lambda: np.ndarray((4,), np.uint8, bytearray(4)),
        lambda: [fresh()],
        lambda: None,
    ],
)
def test_memory_of_others_and_other_things_are_not_its_own(make: Callable[[], Any]) -> None:
    assert not is_sole_owner(result(make), "out")


def test_a_local_of_a_generator_that_waits_counts() -> None:
    def named() -> Any:
        array = fresh()
        yield array

    def unnamed() -> Any:
        yield fresh()

    for function, sole in ((named, False), (unnamed, True)):
        generator = function()
        ports = {"out": next(generator)}
        assert is_sole_owner(ports, "out") is sole
        generator.close()


def test_a_frame_that_was_kept_counts() -> None:
    def make() -> Any:
        array = fresh()
        kept.append(sys._getframe())
        return array

    assert not is_sole_owner(result(make), "out")


def test_two_ports_with_one_array() -> None:
    array = fresh()
    ports = {"a": array, "b": array}
    del array
    assert not is_sole_owner(ports, "a")
    assert not is_sole_owner(ports, "b")
