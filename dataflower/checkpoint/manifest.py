"""What is known of a model's files: names, sizes, digests. Kept as JSON beside them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec

from dataflower.checkpoint.digest import CHUNK_BYTES, chunk_count, model_digest
from dataflower.errors import WeightsInvalid

VERSION = 1
META = ".dataflower"
"""Folder of the store's own files inside a model's folder."""


class FileEntry(msgspec.Struct, frozen=True):
    """One file. `sha256` in hexadecimal; `chunks`: XXH3 of each chunk, 16 bytes each, joined, in hexadecimal.

    `identity`: size, time of change in ns and inode of a file that is used where the user keeps it; another identity
    means that the user changed the file.
    """

    name: str
    nbytes: int
    sha256: str
    chunks: str
    identity: tuple[int, int, int] | None = None

    def chunk(self, number: int) -> bytes:
        """The hash of one chunk."""
        return bytes.fromhex(self.chunks[32 * number : 32 * number + 32])


class Manifest(msgspec.Struct, frozen=True):
    """A model. `source`: the URL that it can be fetched from again, "" if there is none.

    `location`: the folder of its files if that is the user's, "" if they lie in the store.
    """

    name: str
    source: str
    files: tuple[FileEntry, ...]
    location: str = ""
    version: int = VERSION
    chunk_bytes: int = CHUNK_BYTES

    @property
    def digest(self) -> str:
        """Digest of the content: the same files have the same digest, wherever they came from."""
        return model_digest((file.name, file.nbytes, file.sha256) for file in self.files)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)


def identity(path: Path) -> tuple[int, int, int]:
    """What changes when a user replaces or rewrites a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def read(path: Path) -> Manifest | None:
    """The manifest at `path`, None if there is none or it is of another version (then the files are digested anew).

    Raises:
        WeightsInvalid: the file is there and holds something else.
    """
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WeightsInvalid(f"{path}: not a list of weights ({error}); remove it and add the model again") from error
    if manifest.version != VERSION or manifest.chunk_bytes != CHUNK_BYTES:
        return None
    for file in manifest.files:
        if len(file.chunks) != 32 * chunk_count(file.nbytes) or len(file.sha256) != 64:
            raise WeightsInvalid(f"{path}: damaged at {file.name!r}; remove it and add the model again")
    return manifest


def write(path: Path, manifest: Manifest) -> None:
    """Write it whole or not at all."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def write_atomically(path: Path, data: bytes) -> None:
    """The file at `path` has the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
