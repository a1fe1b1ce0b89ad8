"""Whatever Python value goes out comes back the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataflower.gateway import values
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.spec.function import DTYPES

_DTYPES = st.sampled_from(sorted(set(DTYPES.values()) - {"bfloat16"}))
_ARRAYS = _DTYPES.flatmap(lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
_LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary() | _ARRAYS
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return np.float64(left).tobytes() == np.float64(right).tobytes() or (left != left and right != right)
    return bool(left == right)


@settings(max_examples=100, deadline=None)
@given(_VALUES)
def test_values_come_back_the_same(value: Any) -> None:
    message = pb.Value()
    values.encode(value, message)
    assert same(value, values.decode(pb.Value.FromString(message.SerializeToString())))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), _LEAVES, max_size=5))
def test_named_values_come_back_the_same(named: dict[str, Any]) -> None:
    request = pb.InvokeRequest()
    values.encode_map(named, request.inputs)
    again = values.decode_map(pb.InvokeRequest.FromString(request.SerializeToString()).inputs)
    assert again.keys() == named.keys()
    assert all(same(named[key], again[key]) for key in named)
