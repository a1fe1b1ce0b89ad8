"""User values: any nesting comes back as it went, by every way that the limits can choose."""

import os
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.channel.arena import Arena
from dataflower.channel.tensor import decode, encode
from dataflower.channel.views import Views
from dataflower.errors import InvalidArgument
from dataflower.testing.channel_suite import same
from dataflower.wire import TensorRef, Value

_DTYPES = ["?", "u1", "i2", "<f2", "<f4", ">f4", "<f8", ">i8", "<u8", ">u2", "i4"]


@st.composite
def _arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(_DTYPES)))
    count = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    array = np.frombuffer(bytes(b & 1 for b in data) if dtype.kind == "b" else data, dtype).reshape(shape)
    layout = draw(st.sampled_from(["C", "F", "reversed"]))
    if layout == "F":
        return np.asfortranarray(array) if array.ndim else array
    return array[::-1] if layout == "reversed" and array.ndim else array


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
)
_VALUES = st.recursive(
    st.one_of(_SCALARS, _arrays()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4), st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@given(
    value=_VALUES,
    inline_tensor=st.sampled_from([-1, 16, 8192]),
    inline_body=st.sampled_from([0, 32, 32768]),
    copy=st.booleans(),
)
def test_any_value_comes_back(value: Any, inline_tensor: int, inline_body: int, copy: bool) -> None:
    views = Views()
    arena = Arena(1, cap_bytes=1 << 20, announce=lambda number, nbytes, fd: views.attach(number, nbytes, os.dup(fd)))
    sent = encode(value, arena=arena, views=views, inline_tensor_bytes=inline_tensor, inline_body_bytes=inline_body)
    back = decode(sent, views, copy=copy)
    assert same(value, back)
    slots = {(ref.arena, ref.slot) for ref in (*sent.tensors, *([sent.spilled] if sent.spilled else []))}
    assert bool(views.held(slots)) == (bool(sent.tensors) and not copy)
    again = encode(back, arena=arena, views=views, inline_tensor_bytes=inline_tensor, inline_body_bytes=inline_body)
    if not copy:
        assert {(r.arena, r.slot) for r in again.tensors if r.nbytes} <= slots
    assert same(value, decode(again, views))
    del back
    assert views.statistics().held == 0
    views.close()
    arena.close()


_BAD = st.sampled_from(
    [{1, 2}, 2**64, -(2**63) - 1, object(), 1j, "\ud800", np.array("x"), {1: 2}, {b"k": 1}, np.complex64(1), len]
)


@given(bad=_BAD, path=st.lists(st.one_of(st.integers(0, 2), st.text("abc", min_size=1, max_size=2)), max_size=4))
def test_what_cannot_travel_is_named_with_its_place(bad: Any, path: list[Any]) -> None:
    arena = Arena(1, cap_bytes=1 << 20, announce=lambda number, nbytes, fd: None)
    value = bad
    for step in reversed(path):
        value = [np.zeros(2000)] * step + [value] if isinstance(step, int) else {"0": np.zeros(3000), step: value}
    place = "out" + "".join(f"[{step}]" if isinstance(step, int) else f'["{step}"]' for step in path)
    with pytest.raises(InvalidArgument) as raised:
        encode(value, arena=arena, views=None)
    assert str(raised.value).startswith(place + ": cannot send ")
    assert arena.statistics().used_bytes == 0
    arena.close()


@given(
    body=st.binary(max_size=60),
    ref=st.tuples(*[st.integers(-(2**63), 2**63)] * 4),
    shape=st.lists(st.integers(-3, 2**62), max_size=3),
)
def test_a_hostile_value_is_refused_or_harmless(body: bytes, ref: tuple[int, int, int, int], shape: list[int]) -> None:
    views = Views()
    tensors = (TensorRef(*ref, "FP32", tuple(shape)),)
    for value in (Value(body, tensors), Value(b"\xd4\x01\x00", tensors), Value(b"", (), tensors[0])):
        try:
            decoded = decode(value, views)
        except ValueError:
            continue
        assert not isinstance(decoded, np.ndarray) or decoded.nbytes < 100
    assert views.statistics().held == 0


def test_subclasses_become_the_plain_type() -> None:
    value = OrderedDict(a=Counter("aab"), b=np.float32(0.5), c=(np.int64(3), np.True_), d=bytearray(b"x"))
    assert decode(encode(value, arena=None, views=None), None) == {
        "a": {"a": 2, "b": 1},
        "b": 0.5,
        "c": [3, True],
        "d": b"x",
    }
