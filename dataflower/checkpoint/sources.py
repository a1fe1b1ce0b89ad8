"""Where models come from: any URL that fsspec can read (https, s3, gs, hf, file, ...), or a folder of this machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dataflower.checkpoint.format import shards
from dataflower.checkpoint.loader import INDEX, select
from dataflower.errors import DataflowerError, FailedPrecondition, InvalidArgument, NotFound, Unavailable

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_S = 0.25
"""Before the second attempt; doubled before each further one."""
_USUAL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    INDEX,
)
"""Looked for where a server does not list its folders."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at its source. `sha256`: as the source states it, else "". `tag` changes when the file does."""

    name: str
    nbytes: int
    sha256: str = ""
    tag: str = ""


class Source:
    """A folder or file at a URL. Safe for many threads. Errors of the network are tried again a few times."""

    def __init__(self, url: str, pause: Callable[[float], object] | None = None) -> None:
        """Opens nothing yet. `pause`: how to wait between attempts.

        Raises:
            InvalidArgument: nothing here can read such a URL; the message says what to install.
        """
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise FailedPrecondition("the package fsspec is missing: pip install 'dataflower[llm]'") from None
        self.url = url
        self._pause = pause or threading.Event().wait
        try:
            self._fs, path = url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InvalidArgument(f"can't read {url}: {error}") from error
        self._root = str(path).rstrip("/")
        self._single = self._root.endswith((".safetensors", ".gguf"))
        self._ranged: dict[str, bool] = {}

    def close(self) -> None:
        """Close its connections."""
        session = getattr(self._fs, "_session", None)
        if session is not None:
            self._fs.close_session(self._fs.loop, session)

    def listing(self) -> tuple[RemoteFile, ...]:
        """The files of the model, weights first.

        Raises:
            NotFound: there is no model.
            Unavailable: the source can't be reached.
        """
        if self._single:
            entry = self._info(self._root)
            if entry is None:
                raise NotFound(f"there is no file {self.url}")
            return (self._file(self._root.rpartition("/")[2], entry),)
        entries = self._entries()
        chosen = select(entries, self._whole, self.url)
        found = []
        for name in chosen:
            entry = entries[name] if entries[name].get("size") is not None else self._info(self._path(name))
            if entry is None:
                raise NotFound(f"{self.url} lists {name}, which is not there")
            found.append(self._file(name, entry))
        return tuple(found)

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        """Bytes of a file.

        Raises:
            Unavailable: the source can't be reached, or gives less.
        """

        def get() -> bytes:
            data = bytes(self._fs.cat_file(self._path(name), start=offset, end=offset + nbytes))
            if len(data) != nbytes:
                raise OSError(f"gave {len(data)} bytes instead of {nbytes}")
            return data

        return self._try(get, f"{name} of {self.url}, from byte {offset} on")

    def has_ranges(self, name: str) -> bool:
        """Whether parts of a file can be had. If not, `stream` is the only way, and a break means to begin again."""
        if name not in self._ranged:
            self._ranged[name] = self._probe(self._path(name))
        return self._ranged[name]

    def stream(self, name: str, sizes: Sequence[int]) -> Iterator[bytes]:
        """The whole file from its beginning, in pieces of the given sizes."""
        try:
            with self._fs.open(self._path(name), "rb", block_size=0) as file:
                for size in sizes:
                    parts: list[bytes] = []
                    missing = size
                    while missing:
                        part = file.read(missing)
                        if not part:
                            raise Unavailable(f"{name} of {self.url} ended early")
                        parts.append(part)
                        missing -= len(part)
                    yield b"".join(parts)
        except Exception as error:  # each file system has errors of its own
            raise _unavailable(error, f"{name} of {self.url}") from error

    # --- files ---------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return self._root if self._single else f"{self._root}/{name}"

    def _whole(self, name: str) -> bytes:
        return self._try(lambda: bytes(self._fs.cat_file(self._path(name))), f"{name} of {self.url}")

    def _entries(self) -> dict[str, Mapping[str, Any]]:
        """Name -> what the source says of each file of the folder."""
        entries: list[Mapping[str, Any]] = []
        with contextlib.suppress(NotFound, Unavailable, NotImplementedError):
            entries = self._try(lambda: self._fs.ls(self._root, detail=True), self.url)
        found = {
            str(entry["name"]).split("?")[0].rstrip("/").rpartition("/")[2]: entry
            for entry in entries
            if entry.get("type") != "directory"
        }
        if any(name.endswith(".safetensors") for name in found):
            return found
        named = {name: self._info(self._path(name)) for name in _USUAL}
        usual = {name: entry for name, entry in named.items() if entry is not None}
        if INDEX in usual:
            usual.update({name: {} for name in shards(self._whole(INDEX), f"{self.url}/{INDEX}")})
        if not found and not usual:
            raise NotFound(f"there is no model at {self.url}")
        return {**found, **usual}

    def _info(self, path: str) -> Mapping[str, Any] | None:
        try:
            entry: Mapping[str, Any] = self._try(lambda: self._fs.info(path), path)
        except NotFound:
            return None
        return entry

    def _file(self, name: str, entry: Mapping[str, Any]) -> RemoteFile:
        if entry.get("size") is None:
            raise Unavailable(f"{self.url} does not say how long {name} is")
        lfs = entry.get("lfs") or {}
        sha256 = str((lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", "")) or "")
        keys = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "blob_id", "md5Hash")
        tag = next((str(entry[key]) for key in keys if entry.get(key) is not None), "")
        return RemoteFile(name, int(entry["size"]), sha256, tag)

    def _probe(self, path: str) -> bool:
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        if "http" not in protocols:
            return True
        from fsspec.asyn import sync

        async def ask() -> bool:
            session = await self._fs.set_session()
            async with session.get(path, headers={"Range": "bytes=0-0"}) as answer:
                return int(answer.status) == 206

        return self._try(lambda: bool(sync(self._fs.loop, ask)), path)

    def _try(self, get: Callable[[], T], what: str) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return get()
            except (PermissionError, DataflowerError, NotImplementedError):
                raise
            except Exception as error:  # each file system has errors of its own
                no_answer = _no_answer(error)
                if isinstance(error, (FileNotFoundError, NotADirectoryError)) and no_answer is None:
                    raise NotFound(f"there is no {what}") from error
                if attempt == ATTEMPTS - 1:
                    raise _unavailable(no_answer or error, what) from error
                self._pause(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _no_answer(error: Exception) -> BaseException | None:
    """The reason of a "not found" that is none: fsspec's HTTP says so of servers that can't be reached, too."""
    cause = error.__cause__
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        return cause
    return cause if getattr(cause, "status", 0) >= 500 else None


def _unavailable(error: BaseException, what: str) -> DataflowerError:
    if isinstance(error, DataflowerError):
        return error
    return Unavailable(f"can't get {what}: {type(error).__name__}: {error}")


def is_url(model: str) -> bool:
    """Whether a model's name says where to fetch it from."""
    return "://" in model


def as_url(path: str) -> str:
    """A URL of a local path; URLs stay as they are."""
    return path if is_url(path) else Path(path).expanduser().absolute().as_uri()
