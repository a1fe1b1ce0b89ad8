"""The safetensors format: what a file says about its tensors, and everything that can be wrong with that. Pure.

A file is 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape, and where the bytes
lie), and the bytes of all tensors without a gap. Source: the format's own description (huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflower.errors import WeightsInvalid

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""Longer headers are refused, as every reader of the format does."""

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""The format's names of datatypes -> bits of one element. Types smaller than a byte are not supported."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where a tensor lies: `nbytes` at `offset` from the beginning of its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a file say. `data_offset`: where the tensors' bytes begin."""

    tensors: tuple[TensorSpec, ...]
    data_offset: int
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Size that the whole file must have."""
        return self.data_offset + sum(tensor.nbytes for tensor in self.tensors)


def header_length(prefix: bytes | memoryview, file_bytes: int, file: str = "") -> int:
    """Length of the JSON header, from the first 8 bytes of a file of `file_bytes` bytes.

    Raises:
        WeightsInvalid: the file is cut off, or no safetensors file.
    """
    if file_bytes < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        raise WeightsInvalid(f"{file}: {file_bytes} bytes are too few for a safetensors file (cut off?)")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise WeightsInvalid(f"{file}: this is no safetensors file (its header would be {length} bytes long)")
    if LENGTH_BYTES + length > file_bytes:
        raise WeightsInvalid(f"{file}: cut off within its header ({file_bytes} bytes, the header alone has {length})")
    return length


def parse_header(data: bytes | memoryview, file_bytes: int, file: str = "") -> Header:
    """Read the header of a file of `file_bytes` bytes from its beginning (at least up to the end of the header).

    Every tensor is checked against its dtype, its shape and its neighbours, and their sum against the file's size:
    after this no tensor can reach outside the file, nor into another one.

    Raises:
        WeightsInvalid: with the file, the tensor and what is wrong.
    """
    length = header_length(data[:LENGTH_BYTES], file_bytes, file)
    try:
        content = json.loads(bytes(data[LENGTH_BYTES : LENGTH_BYTES + length]))
    except ValueError as error:
        raise WeightsInvalid(f"{file}: the header can't be read ({error}): no safetensors file, or damaged") from error
    if not isinstance(content, dict):
        raise WeightsInvalid(f"{file}: the header is no JSON object")
    metadata = content.pop("__metadata__", None) or {}
    start = LENGTH_BYTES + length
    tensors = sorted((_tensor(name, entry, start, file) for name, entry in content.items()), key=lambda t: t.offset)
    at = start
    for tensor in tensors:
        if tensor.offset != at:
            raise WeightsInvalid(f"{file}: tensor {tensor.name!r} begins at byte {tensor.offset}, expected {at}")
        at += tensor.nbytes
    if at != file_bytes:
        what = "cut off" if at > file_bytes else "longer than its tensors"
        raise WeightsInvalid(f"{file}: {what}: the file has {file_bytes} bytes, its header speaks of {at}")
    return Header(tuple(tensors), start, metadata)


def _tensor(name: str, entry: Any, start: int, file: str) -> TensorSpec:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        fits = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        raise WeightsInvalid(f"{file}: tensor {name!r}: needs dtype, shape and data_offsets") from None
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        raise WeightsInvalid(f"{file}: tensor {name!r}: unknown dtype {dtype!r}")
    if not fits or (end - begin) * 8 != math.prod(shape) * bits:
        raise WeightsInvalid(f"{file}: tensor {name!r}: {dtype} {list(shape)} does not fill bytes {begin} to {end}")
    return TensorSpec(name, dtype, shape, start + begin, end - begin)


def shards(index: bytes, file: str = "") -> tuple[str, ...]:
    """Names of the files that a `*.safetensors.index.json` lists, sorted.

    Raises:
        WeightsInvalid: it is no such index, or names files outside its folder.
    """
    try:
        files = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsInvalid(f"{file}: no index of safetensors files (it needs a weight_map)") from None
    for name in files:
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise WeightsInvalid(f"{file}: {name!r} is not the name of a safetensors file beside it")
    return tuple(files)


def check_index(index: bytes | memoryview, headers: Mapping[str, Header], file: str = "") -> None:
    """Hold an index against the headers of its shards: each tensor is to be where the index says.

    Raises:
        WeightsInvalid: one is not; names the tensor and the shard. Also see `shards`.
    """
    shards(bytes(index), file)
    holds = {shard: {spec.name for spec in header.tensors} for shard, header in headers.items()}
    weight_map: dict[str, str] = json.loads(bytes(index))["weight_map"]
    astray = [(name, shard) for name, shard in weight_map.items() if name not in holds.get(shard, ())]
    if not astray:
        return
    name, shard = astray[0]
    others = [other for other in sorted(holds) if name in holds[other]]
    where = f"it is in {others[0]}" if others else "it is in no shard"
    raise WeightsInvalid(
        f"{file}: tensor {name!r} is not in {shard}, where the index says it is: {where} ({len(astray)} such). "
        "Index and shards are not of one model: fetch or save it anew, all files together"
    )


def encode_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]],
    metadata: Mapping[str, str] | None = None,
    align: int = 8,
) -> bytes:
    """A file's first bytes (length and header) for tensors name -> (dtype, shape, begin, end).

    Padded with spaces, as the format allows, so that the tensors' bytes begin at a multiple of `align`.
    """
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (dtype, shape, begin, end) in tensors.items():
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % align)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
