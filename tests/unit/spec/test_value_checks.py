"""Values against ports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dataflower.errors import InvalidArgument
from dataflower.spec.function import Json, Kind, Port, PortType, Tensor, Text
from dataflower.spec.values import check_value

ANY = PortType()
INT, FLOAT, BOOL, BYTES = (PortType(kind) for kind in (Kind.INT, Kind.FLOAT, Kind.BOOL, Kind.BYTES))


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (ANY, object()),
        (Text(), "x"),
        (INT, 3),
        (INT, np.int32(3)),
        (FLOAT, 3),
        (FLOAT, np.float32(3)),
        (BOOL, np.bool_(True)),
        (BYTES, bytearray(b"x")),
        (Json(), {"a": [1, None, {"b": 2.5}], "c": (True, "x")}),
        (Tensor("FP32"), np.zeros((2, 3), np.float32)),
        (Tensor("UINT8", ["H", "W", 3]), np.zeros((4, 5, 3), np.uint8)),
        (PortType(Kind.TENSOR), np.zeros(1, bool)),
    ],
)
def test_fits(type_: PortType, value: Any) -> None:
    sizes: dict[str, int] = {}
    check_value(Port("p", type_), value, sizes)
    assert set(sizes) <= {"H", "W"}


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        (Text(), 3, "port 'p' expects string, got int"),
        (INT, True, "expects int, got bool"),
        (INT, 2.0, "expects int, got float"),
        (FLOAT, "2", "expects float, got str"),
        (BOOL, 1, "expects bool, got int"),
        (Text(), None, "expects string, got nothing (None)"),
        (Json(), {"a": [1, {"b": np.zeros(2)}]}, "expects json, got FP64[2] at .a[1].b"),
        (Json(), {1: 2}, "a map with the key 1"),
        (Tensor("FP32"), [1.0], "expects FP32[...], got list"),
        (Tensor("FP32"), np.zeros(2), "expects FP32[...], got FP64[2]"),
        (Tensor("UINT8", [2, 3]), np.zeros((2, 4), np.uint8), "expects UINT8[2, 3], got UINT8[2, 4]"),
        (Tensor("UINT8", [2, 3]), np.zeros(2, np.uint8), "rank 1 instead of 2"),
        (Tensor("UINT8", ["N", "N"]), np.zeros((2, 4), np.uint8), "N is 2 in this task"),
    ],
)
def test_does_not_fit(type_: PortType, value: Any, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_value(Port("p", type_), value, {})
    assert message in caught.value.message


def test_named_sizes_agree_throughout_a_task() -> None:
    sizes: dict[str, int] = {}
    check_value(Port("a", Tensor("FP32", ["N", "D"])), np.zeros((2, 8), np.float32), sizes)
    assert sizes == {"N": 2, "D": 8}
    with pytest.raises(InvalidArgument, match=r"D is 8 in this task"):
        check_value(Port("b", Tensor("FP32", ["D"])), np.zeros(9, np.float32), sizes)
    assert sizes == {"N": 2, "D": 8}


def test_none_is_fine_only_where_it_is_the_default() -> None:
    check_value(Port("p", Text(), optional=True), None, {})
    with pytest.raises(InvalidArgument):
        check_value(Port("p", Text(), optional=True, default="x"), None, {})


def test_torch_tensors_are_known_by_their_dtype() -> None:
    class Torchlike:
        dtype = "torch.bfloat16"
        shape = (2,)

    sizes: dict[str, int] = {}
    check_value(Port("p", Tensor("BF16", ["N"])), Torchlike(), sizes)
    assert sizes == {"N": 2}
