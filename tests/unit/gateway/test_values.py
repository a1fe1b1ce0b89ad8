"""Values at the border: what crosses, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dataflower.errors import InvalidArgument
from dataflower.gateway import values
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.spec.function import DTYPES


def cross(value: Any) -> Any:
    message = pb.Value()
    values.encode(value, message)
    return values.decode(pb.Value.FromString(message.SerializeToString()))


def test_what_can_not_cross_is_named() -> None:
    for bad, why in (
        (1 << 63, "does not fit in 64 bits"),
        (object(), "can't be sent"),
        ([[{1: 2}]], "keys are strings"),
    ):
        with pytest.raises(InvalidArgument, match=f"^'frame': .*{why}"):
            values.encode_map({"good": 1, "frame": bad}, pb.InvokeRequest().inputs)


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"BF16"}))
def test_arrays_of_each_datatype_cross(datatype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(DTYPES[datatype])
    again = cross(array)
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)
    assert not again.flags.writeable
    assert again.base is not None


def test_bfloat16_crosses_as_bits() -> None:
    bits = np.array([0x3F80, 0xC000], np.uint16)
    array = bits.view(values.numpy_dtype("BF16"))
    np.testing.assert_array_equal(cross(array).view(np.uint16), bits)


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float32), np.array(7), np.arange(6).reshape(2, 3).T[::2]])
def test_empty_scalar_and_strided_arrays_cross(array: np.ndarray[Any, Any]) -> None:
    again = cross(array)
    assert again.shape == array.shape
    np.testing.assert_array_equal(again, array)


def test_big_endian_arrays_are_turned_round() -> None:
    np.testing.assert_array_equal(cross(np.array([1, 2], ">i4")), [1, 2])


def test_numpy_scalars_become_python_numbers() -> None:
    assert [type(cross(x)) for x in (np.float32(1), np.int8(1), np.bool_(True))] == [float, int, bool]


def test_maps_keep_their_order() -> None:
    assert list(cross({"z": 1, "a": 2, "m": 3})) == ["z", "a", "m"]


@pytest.mark.parametrize(
    "value",
    [2**63, object(), {1: 2}, np.array(["a"]), np.array([None]), "\ud800", {"\ud800": 1}, np.datetime64(0, "s"), 1j],
    ids=lambda value: type(value).__name__,
)
def test_what_can_not_cross_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        cross(value)


def test_nesting_has_a_limit_that_readers_can_take() -> None:
    deep: Any = 1
    for _ in range(values.MAX_DEPTH):
        deep = {"x": [deep]} if _ % 2 else deep
    assert cross(deep) == deep
    for _ in range(values.MAX_DEPTH):
        deep = [deep]
    with pytest.raises(InvalidArgument, match="nested deeper"):
        cross(deep)
    maps: Any = 1
    for _ in range(values.MAX_DEPTH):
        maps = {"x": maps}
    assert cross(maps) == maps


def test_a_tensor_that_lies_about_its_size_is_refused() -> None:
    for shape in ([3], [-1], [2**40, 2**40]):
        with pytest.raises(InvalidArgument):
            values.decode(pb.Value(tensor=pb.Tensor(datatype="FP32", shape=shape, data=b"12345678")))
    with pytest.raises(InvalidArgument, match="unknown datatype"):
        values.decode(pb.Value(tensor=pb.Tensor(datatype="BYTES", shape=[1], data=b"1")))
