"""Headers of safetensors files: what is read, and everything that is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from dataflower.checkpoint.format import Header, TensorSpec, check_index, encode_header, parse_header, shards
from dataflower.errors import WeightsInvalid

np = pytest.importorskip("numpy")


def raw(content: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_file_of_the_library_is_read() -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(True),
        "empty": np.zeros((0, 4), np.int8),
    }
    data = save(arrays, {"format": "pt"})
    header = parse_header(data, len(data))
    assert {t.name: (t.dtype, t.shape, t.nbytes) for t in header.tensors} == {
        "b": ("F32", (2, 3), 24),
        "a": ("BOOL", (), 1),
        "empty": ("I8", (0, 4), 0),
    }
    assert header.metadata == {"format": "pt"}
    assert header.nbytes == len(data)
    spec = next(t for t in header.tensors if t.name == "b")
    assert data[spec.offset : spec.offset + spec.nbytes] == arrays["b"].tobytes()


GOOD = {"x": entry("F32", [2], 0, 8), "y": entry("BF16", [3], 8, 14)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01\x02", "too few"),
        (raw(b"", length=1 << 40), "no safetensors file"),
        (raw(GOOD, bytes(14))[:40], "cut off within its header"),
        (raw(b"{not json}"), "can't be read"),
        (raw([1, 2]), "no JSON object"),
        (raw(GOOD, bytes(13)), "cut off: the file has"),
        (raw(GOOD, bytes(15)), "longer than its tensors"),
        (raw({"x": entry("F32", [2], 0, 9)}, bytes(9)), "does not fill"),
        (raw({"x": entry("F32", [-2], 0, 8)}, bytes(8)), "does not fill"),
        (raw({"x": entry("F31", [2], 0, 8)}, bytes(8)), "unknown dtype 'F31'"),
        (raw({"x": {"dtype": "F32"}}), "needs dtype, shape and data_offsets"),
        (raw({"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 4, 12)}, bytes(12)), "'y' begins at byte"),
        (raw({"x": entry("F32", [2], 4, 12)}, bytes(12)), "'x' begins at byte"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(data: bytes, message: str) -> None:
    with pytest.raises(WeightsInvalid, match=message) as caught:
        parse_header(data, len(data), "model.safetensors")
    assert "model.safetensors" in caught.value.message


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_in_good_order(data: bytes) -> None:
    try:
        header = parse_header(data, len(data))
    except WeightsInvalid:
        return
    assert header.nbytes == len(data)


@given(st.integers(0, 300), st.data())
def test_a_damaged_header_never_reaches_outside_the_file(at: int, draw: st.DataObject) -> None:
    data = bytearray(raw(GOOD, bytes(14)))
    data[at % (len(data) - 14)] = draw.draw(st.integers(0, 255))
    try:
        header = parse_header(bytes(data), len(data))
    except WeightsInvalid:
        return
    assert all(t.offset + t.nbytes <= len(data) for t in header.tensors)


@pytest.mark.parametrize("align", [8, 64, 4096])
def test_headers_are_written_aligned(align: int) -> None:
    header = encode_header({"x": ("F32", (2,), 0, 8), "ä": ("BF16", (3,), 8, 14)}, {"k": "v"}, align)
    assert len(header) % align == 0
    again = parse_header(header + bytes(14), len(header) + 14)
    assert [(t.name, t.shape, t.offset - len(header)) for t in again.tensors] == [("x", (2,), 0), ("ä", (3,), 8)]
    assert again.metadata == {"k": "v"}


def test_an_index_lists_each_shard_once() -> None:
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}}
    assert shards(json.dumps(index).encode()) == ("model-1.safetensors", "model-2.safetensors")


@pytest.mark.parametrize(
    "index",
    [b"", b"{}", b'{"weight_map": 1}', b'{"weight_map": {"a": "../x.safetensors"}}', b'{"weight_map": {"a": 1}}'],
)
def test_a_bad_index_is_refused(index: bytes) -> None:
    with pytest.raises(WeightsInvalid):
        shards(index, "model.safetensors.index.json")


HELD = {
    "m-1.safetensors": Header((TensorSpec("a", "F32", (1,), 8, 4), TensorSpec("b", "F32", (1,), 12, 4)), 8, {}),
    "m-2.safetensors": Header((TensorSpec("c", "F32", (1,), 8, 4),), 8, {}),
}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"d": "m-2.safetensors"}, r"index\.json: tensor 'd' is not in m-2\.safetensors.*it is in no shard \(1 such\)"),
        ({"c": "m-1.safetensors"}, r"tensor 'c' is not in m-1\.safetensors.*it is in m-2\.safetensors \(1 such\)"),
        ({"d": "m-3.safetensors"}, r"tensor 'd' is not in m-3\.safetensors"),
    ],
)
def test_an_index_that_its_shards_contradict_is_refused(more: dict[str, str], message: str) -> None:
    right = {"a": "m-1.safetensors", "c": "m-2.safetensors"}  # that a shard holds more hurts nobody
    check_index(json.dumps({"weight_map": right}).encode(), HELD, "index.json")
    with pytest.raises(WeightsInvalid, match=message) as refused:
        check_index(json.dumps({"weight_map": {**right, **more}}).encode(), HELD, "index.json")
    assert "fetch or save it anew" in refused.value.message
