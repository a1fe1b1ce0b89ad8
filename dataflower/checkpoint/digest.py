"""What proves that bytes are the right ones: SHA-256 of a file once, XXH3 of each chunk at every load.

SHA-256 is what publishers state and what a model's digest is made of. It takes a second a gigabyte, so it is taken when
a file comes in; the fast hashes of its chunks, noted at that moment, find damage at every later load at no cost in
time (they run at memory speed beside the disk). Both release the interpreter's lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from dataflower.errors import FailedPrecondition

CHUNK_BYTES = 8 * 1024 * 1024
"""Files are fetched, read, checked and handed on in pieces of this size."""


def chunk_hash(parts: Sequence[memoryview | bytes]) -> bytes:
    """XXH3 (128 bits) of a chunk that lies in one or more pieces.

    Raises:
        FailedPrecondition: the package xxhash is not installed.
    """
    try:
        import xxhash
    except ImportError:
        raise FailedPrecondition("the package xxhash is missing: pip install 'dataflower[llm]'") from None
    if len(parts) == 1:
        return xxhash.xxh3_128_digest(parts[0])
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.digest()


def chunks(nbytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each chunk of a file of `nbytes` bytes."""
    return ((at, min(CHUNK_BYTES, nbytes - at)) for at in range(0, nbytes, CHUNK_BYTES))


def chunk_count(nbytes: int) -> int:
    """How many chunks a file of `nbytes` bytes has."""
    return -(-nbytes // CHUNK_BYTES)


def model_digest(files: Iterable[tuple[str, int, str]]) -> str:
    """Digest of a model from the (name, bytes, SHA-256) of its files: 64 hexadecimal digits, whatever their order."""
    state = hashlib.sha256()
    for name, nbytes, sha256 in sorted(files):
        state.update(f"{name}\0{nbytes}\0{sha256}\n".encode())
    return state.hexdigest()
