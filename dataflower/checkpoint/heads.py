"""What the processor needs of weights on a device: headers of safetensors files, and the small files as they are.

It is host memory of a few megabytes, kept beside the weights and mapped by whoever uses them, so that a function finds
tensors, configuration and tokenizer when the host's copy of the weights has long made room for others.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataflower.checkpoint.format import LENGTH_BYTES, header_length
from dataflower.checkpoint.layout import Placed, pages, place
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.region import Owned

LENGTHS = "lengths"
_NUMBER_BYTES = 8


def take(manifest: Manifest, owned: Owned) -> Owned:
    """A copy of the heads out of a model's memory. The caller owns it.

    It begins with the bytes of each file's head, in the manifest's order, then has the heads.

    Raises:
        WeightsInvalid: a file is no safetensors file.
        OSError: there is no memory.
    """
    files = place((file.name, file.nbytes) for file in manifest.files)
    lengths = [_head(owned, file) for file in files]
    table = b"".join(length.to_bytes(_NUMBER_BYTES, "little") for length in lengths)
    placed = places(manifest, lengths)
    last = placed[-1]
    made = Owned(last.offset + pages(last.nbytes))
    try:
        _write(made, 0, [memoryview(table)])
        for file, head in zip(files, placed[1:], strict=True):
            _write(made, head.offset, owned.views(file.offset, head.nbytes))
    except BaseException:
        made.close()
        raise
    return made


def places(manifest: Manifest, lengths: Sequence[int]) -> tuple[Placed, ...]:
    """Where the table and each file's head lie."""
    names = [file.name for file in manifest.files]
    return place([(LENGTHS, len(names) * _NUMBER_BYTES), *zip(names, lengths, strict=True)])


def read_lengths(manifest: Manifest, table: bytes | memoryview) -> list[int]:
    """Bytes of each file's head, out of the beginning of the memory."""
    count = len(manifest.files)
    return [int.from_bytes(table[i * _NUMBER_BYTES : (i + 1) * _NUMBER_BYTES], "little") for i in range(count)]


def table_bytes(manifest: Manifest) -> int:
    """Size of that beginning."""
    return len(manifest.files) * _NUMBER_BYTES


def _head(owned: Owned, file: Placed) -> int:
    if not file.name.endswith(".safetensors"):
        return file.nbytes
    prefix = b"".join(owned.views(file.offset, min(LENGTH_BYTES, file.nbytes)))
    return LENGTH_BYTES + header_length(prefix, file.nbytes, file.name)


def _write(to: Owned, offset: int, parts: Sequence[memoryview]) -> None:
    for part in parts:
        at = 0
        for view in to.views(offset, len(part)):
            view[:] = part[at : at + len(view)]
            at += len(view)
        offset += len(part)
