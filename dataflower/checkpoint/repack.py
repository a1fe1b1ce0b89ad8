"""Safetensors files written anew so that the processor likes them: aligned, and still valid safetensors files.

The header is padded with spaces, as the format allows, so that the tensors begin at a page; those whose size is a
multiple of a cache line come first, so that each of them begins at one. The format allows no gaps, so the few odd ones
come last, by falling alignment: none is misaligned for its type.
"""

from __future__ import annotations

import os
from pathlib import Path

from dataflower.checkpoint.digest import CHUNK_BYTES
from dataflower.checkpoint.format import (
    DTYPE_BITS,
    LENGTH_BYTES,
    Header,
    TensorSpec,
    encode_header,
    header_length,
    parse_header,
)
from dataflower.checkpoint.layout import PAGE_BYTES
from dataflower.checkpoint.loader import Progress, ignore

LINE_BYTES = 64


def read_header(path: Path) -> Header:
    """The header of a file on the disk. Raises WeightsInvalid."""
    nbytes = path.stat().st_size
    with open(path, "rb") as file:
        length = header_length(file.read(LENGTH_BYTES), nbytes, str(path))
        file.seek(0)
        return parse_header(file.read(LENGTH_BYTES + length), nbytes, str(path))


def repack(source: Path, target: Path, progress: Progress = ignore) -> None:
    """Write the tensors of `source` into the new file `target`, aligned.

    Raises:
        WeightsInvalid: `source` is no safetensors file, or cut off.
        OSError: the disk is full or fails; `target` is to be thrown away.
    """
    header = read_header(source)
    order = sorted(header.tensors, key=_rank)
    places: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    at = 0
    for spec in order:
        places[spec.name] = (spec.dtype, spec.shape, at, at + spec.nbytes)
        at += spec.nbytes
    with open(source, "rb") as read, open(target, "xb") as write:
        write.write(encode_header(places, header.metadata, PAGE_BYTES))
        for spec in order:
            read.seek(spec.offset)
            rest = spec.nbytes
            while rest:
                data = read.read(min(CHUNK_BYTES, rest))
                if not data:
                    raise OSError(f"{source} became shorter while it was read")
                write.write(data)
                progress(len(data))
                rest -= len(data)
        write.flush()
        os.fsync(write.fileno())


def _rank(spec: TensorSpec) -> tuple[int, int]:
    """Whole cache lines first, each group in the order of the file; then by falling alignment of the type."""
    return (0, 0) if spec.nbytes % LINE_BYTES == 0 else (1, -DTYPE_BITS[spec.dtype])
