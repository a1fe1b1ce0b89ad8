"""What values become, where their bytes go, and what stays allocated."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from dataflower.channel.arena import Arena
from dataflower.channel.tensor import decode, empty, encode, encode_ports
from dataflower.channel.torches import Bf16Bits
from dataflower.channel.views import Views
from dataflower.errors import InvalidArgument, ResourceExhausted


@dataclass
class Memory:
    arena: Arena
    views: Views


@pytest.fixture
def memory() -> Iterator[Memory]:
    views = Views()
    arena = Arena(1, cap_bytes=4 << 20, announce=lambda number, nbytes, fd: views.attach(number, nbytes, os.dup(fd)))
    yield Memory(arena, views)
    views.close()
    arena.close()


def test_small_ones_ride_inside_and_large_ones_by_reference(memory: Memory) -> None:
    small = encode(np.zeros(8192, np.uint8), arena=memory.arena, views=memory.views)
    large = encode(np.zeros(8193, np.uint8), arena=memory.arena, views=memory.views)
    body = encode(b"x" * 40000, arena=memory.arena, views=memory.views)
    assert (len(small.tensors), len(large.tensors), body.body) == (0, 1, b"")
    assert body.spilled is not None
    assert encode(b"x" * 40000, arena=None, views=None).spilled is None
    assert memory.arena.statistics().slots == 2


def test_own_arrays_become_read_only_and_are_shared_once(memory: Memory) -> None:
    array = empty(memory.arena, (100, 100), "FP32")
    array[:] = 3
    ports = encode_ports({"a": array, "b": {"part": array[50:]}}, arena=memory.arena, views=None)
    assert ports["b"].tensors[0].offset == ports["a"].tensors[0].offset + 20000
    assert memory.arena.statistics().slots == 1
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    again = encode(array, arena=memory.arena, views=None)  # its first receiver may be about to release it
    assert again.tensors[0].slot != ports["a"].tensors[0].slot
    memory.arena.release([(1 << 16, ports["a"].tensors[0].slot)])
    third = encode(array, arena=memory.arena, views=None)
    assert third.tensors == ports["a"].tensors


def test_an_error_takes_everything_back(memory: Memory) -> None:
    own = empty(memory.arena, (5000,), "FP32")
    with pytest.raises(InvalidArgument, match=r'^b\["x"\]\[1\]: cannot send object'):
        encode_ports({"a": [own, np.ones(9000)], "b": {"x": [1, object()]}}, arena=memory.arena, views=None)
    with pytest.raises(ResourceExhausted, match="arena_bytes"):
        encode([np.zeros(9000), np.zeros(1 << 20)], arena=memory.arena, views=None)
    assert memory.arena.statistics().slots == 1
    assert memory.arena.find(own.ctypes.data, 8) is not None
    del own
    assert memory.arena.statistics().slots == 0


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ({1, 2}, "sorted"),
        (iter([1]), "yield its items"),
        (np.ma.masked_array([1], [True]), "filled"),
        (np.array(["a"]), "list of strings"),
        (np.array([object()]), "convert it to one of bool, uint8"),
        (Memory, "allowed: None"),
        (2**80, "as a string"),
    ],
)
def test_hints(value: object, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=hint):
        encode([value], arena=None, views=None)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(InvalidArgument, match="contains itself"):
        encode(value, arena=None, views=None)
    deep: list[object] = []
    for _ in range(600):
        deep = [deep]
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        encode(deep, arena=None, views=None)


def test_copies_are_writable_and_hold_nothing(memory: Memory) -> None:
    sent = encode([np.zeros(9000), np.zeros(3)], arena=memory.arena, views=None)
    for array in decode(sent, memory.views, copy=True):
        array[0] = 5
    assert memory.views.statistics().held == 0
    assert not decode(sent, memory.views)[1].flags.writeable


def test_bf16_without_torch_is_bits_that_stay_bf16(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for shape in ((4,), (100, 100)):
        made = empty(memory.arena, shape, "BF16")
        made.view(np.ndarray)[:] = 0x3F80
        back = decode(encode(made, arena=memory.arena, views=None), memory.views)
        assert isinstance(back, Bf16Bits)
        assert int(back.view(np.ndarray).max()) == 0x3F80
        assert encode(back[1:], arena=memory.arena, views=memory.views).body != b""
        with pytest.raises(TypeError):
            back + 1
        other = decode(encode(back.astype(np.float32), arena=memory.arena, views=memory.views), memory.views)
        assert (type(other), other.dtype, other.shape) == (np.ndarray, np.float32, shape)


@pytest.mark.parametrize(("name", "oip"), [("float32", "FP32"), ("bfloat16", "BF16"), ("bool", "BOOL")])
def test_a_torch_dtype_gives_a_torch_tensor_that_is_in_the_arena_already(memory: Memory, name: str, oip: str) -> None:
    import torch

    made = empty(memory.arena, (3, 5000), getattr(torch, name))
    made.fill_(1)
    assert (made.dtype, tuple(made.shape)) == (getattr(torch, name), (3, 5000))
    assert memory.arena.statistics().slots == 1
    value = encode(made, arena=memory.arena, views=None)
    (ref,) = value.tensors
    assert (ref.dtype, ref.shape) == (oip, (3, 5000))
    assert memory.arena.statistics().slots == 1, "it was copied"
    del made
    assert memory.arena.statistics().slots == 1, "it is sent"
    memory.arena.release(((ref.arena, ref.slot),))
    assert memory.arena.statistics().slots == 0


def test_a_torch_dtype_that_nobody_could_send_is_refused(memory: Memory) -> None:
    import torch

    with pytest.raises(TypeError, match=r"torch\.complex64 can't be handed on; what can: bool, uint8"):
        empty(memory.arena, (5000,), torch.complex64)
    assert memory.arena.statistics().slots == 0


def test_an_array_passed_on_keeps_its_reference(memory: Memory) -> None:
    sent = encode(np.arange(30000, dtype=np.float32).reshape(100, 300), arena=memory.arena, views=None)
    array = decode(sent, memory.views)
    assert encode(array, arena=memory.arena, views=memory.views) == sent
    assert encode_ports({"a": array}, arena=memory.arena, views=memory.views) == {"a": sent}
    assert encode_ports({"a": array, "b": [array]}, arena=memory.arena, views=memory.views)["a"] == sent
    assert memory.arena.statistics().slots == 1


def test_an_array_changed_in_place_is_sent_as_it_is_now(memory: Memory) -> None:
    sent = encode(np.arange(30000, dtype=np.float32), arena=memory.arena, views=None)
    for change in ("shape", "dtype", "strides"):
        array = decode(sent, memory.views)
        if change == "shape":
            array.shape = (300, 100)
        elif change == "dtype":
            array.dtype = np.int32
        else:
            array = decode(sent, memory.views)
            array = np.lib.stride_tricks.as_strided(array, (15000,), (8,))
        again = decode(encode(array, arena=memory.arena, views=memory.views), memory.views)
        assert (again.shape, again.dtype) == (array.shape, array.dtype)
        assert np.array_equal(again, array)


def test_a_dead_array_is_not_taken_for_the_one_in_its_place(memory: Memory) -> None:
    first = encode(np.zeros(9000, np.uint8), arena=memory.arena, views=None)
    second = encode(np.ones(9000, np.uint8), arena=memory.arena, views=None)
    for _ in range(100):  # the memory of one array object is soon that of the next
        for sent in (first, second):
            assert encode(decode(sent, memory.views), arena=memory.arena, views=memory.views) == sent
    own = np.full(9000, 7, np.uint8)
    assert decode(encode(own, arena=memory.arena, views=memory.views), memory.views)[0] == 7
