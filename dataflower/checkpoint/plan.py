"""One model that a store is to hold: found on the disk or at its source, then filled into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dataflower.checkpoint import manifest as manifests
from dataflower.checkpoint.catalog import Catalog, healer
from dataflower.checkpoint.disk import DiskTier, Located, slug
from dataflower.checkpoint.layout import pages, place
from dataflower.checkpoint.loader import Arrival, Load, Progress, describe, ignore
from dataflower.checkpoint.manifest import FileEntry, Manifest
from dataflower.checkpoint.region import Owned
from dataflower.checkpoint.sources import RemoteFile, Source, is_url
from dataflower.errors import WeightsInvalid


@dataclass(slots=True)
class Plan:
    """How a model gets into memory. `key` stands for its content as far as it is known without reading it."""

    model: str
    disk: DiskTier
    located: Located
    sizes: list[tuple[str, int]]
    key: str
    remote: bool = False
    files: tuple[RemoteFile, ...] = ()
    """What the source lists, if it has to be fetched."""
    arrival: Arrival = field(default_factory=Arrival)
    manifest: Manifest | None = None
    base: str = ""
    """The model that this one was made of, if it is a packed one."""
    remake: Callable[[], Plan] | None = None
    """Makes a packed one anew, if its file is damaged."""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.located.name

    @property
    def folder(self) -> Path:
        """Where its files are, or will be."""
        return self.located.folder

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(nbytes for _, nbytes in self.sizes)

    @property
    def memory_bytes(self) -> int:
        """What the files take in memory."""
        return sum(pages(nbytes) for _, nbytes in self.sizes)

    @property
    def digest(self) -> str:
        """Known once it is filled."""
        return self.manifest.digest if self.manifest is not None else ""

    def is_pinned(self) -> bool:
        """Whether the user wants it kept in memory."""
        return any(self.disk.is_pinned(name) for name in (self.located.name, self.base) if name)

    def brief(self) -> Manifest:
        """What clients are told: names and sizes, and the files' digests if they are known."""
        if self.manifest is None:
            return Manifest(self.name, "", tuple(FileEntry(name, nbytes, "", "") for name, nbytes in self.sizes))
        return msgspec.structs.replace(
            self.manifest, files=tuple(msgspec.structs.replace(file, chunks="") for file in self.manifest.files)
        )

    def fill(self, owned: Owned, progress: Progress = ignore, ready: Callable[[], object] = lambda: None) -> None:
        """Fill the memory and check it; blocks. `ready` is called when that is done; the disk may take longer.

        Raises:
            WeightsInvalid: files are damaged and can't be fetched again.
            Unavailable: the source can't be reached.
            ResourceExhausted: the disk is full.
            OSError: the disk fails.
        """
        try:
            if self.remote:
                self._fetch(owned, progress, ready)
            else:
                self._load_or_remake(owned, progress)
                ready()
        finally:
            self.arrival.finish()

    def _fetch(self, owned: Owned, progress: Progress, ready: Callable[[], object]) -> None:
        def note(manifest: Manifest) -> None:
            self.manifest = manifest
            ready()

        Catalog(self.disk).fetch(
            self.model,
            self.located.name,
            files=self.files,
            owned=owned,
            progress=progress,
            arrival=self.arrival,
            ready=note,
        )

    def _load_or_remake(self, owned: Owned, progress: Progress) -> None:
        try:
            self._load(owned, progress)
        except WeightsInvalid:
            if self.remake is None:
                raise
            fresh = self.remake()
            if fresh.memory_bytes != self.memory_bytes:
                raise
            before, self.arrival = self.arrival, Arrival()
            self.located, self.sizes = fresh.located, fresh.sizes
            before.finish()  # who follows it begins again
            self._load(owned, progress)

    def _load(self, owned: Owned, progress: Progress) -> None:
        located, threads = self.located, self.disk.config.models_threads
        known = {file.name: file for file in located.manifest.files} if located.manifest else {}
        load = Load(
            located.folder,
            place(self.sizes),
            owned,
            known,
            heal=self._heal if located.manifest and is_url(located.manifest.source) else None,
            progress=progress,
            threads=threads,
            arrival=self.arrival,
        )
        load.run()
        self.manifest = located.manifest
        if self.manifest is None:
            self.manifest = describe(located.folder, located.names, load, name=located.name)
            self.disk.remember(located, self.manifest)

    def _heal(self, entry: FileEntry, number: int) -> bytes:
        assert self.located.manifest is not None
        heal = healer(self.located.manifest)
        assert heal is not None
        return heal(entry, number)


def find(disk: DiskTier, model: str) -> Plan:
    """What a name, folder, file or URL means now.

    Raises:
        NotFound: nothing.
        WeightsInvalid: the files contradict each other, or are no longer those that were added under this name.
        Unavailable: it has to be fetched, and its source can't be reached.
    """
    if is_url(model):
        name = name_of(disk, model)
        if name not in disk.names():
            return _find_remote(disk, model, name)
        located = disk.settle(disk.locate(name))
    else:
        located = disk.settle(disk.locate(model))
    disk.touch(located.name)
    return Plan(model, disk, located, located.sizes(), content_key(located))


def name_of(disk: DiskTier, url: str) -> str:
    """Name of what a URL means in the store. Two URLs that end alike have different names."""
    name = slug(url)
    manifest = manifests.read(disk.meta(name) / "manifest.json")
    if manifest is None or manifest.source == url:
        return name
    return f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _find_remote(disk: DiskTier, url: str, name: str) -> Plan:
    source = Source(url)
    try:
        files = source.listing()
    finally:
        source.close()
    located = Located(name, disk.root / name, tuple(f.name for f in files), disk.meta(name) / "manifest.json", None)
    return Plan(url, disk, located, [(f.name, f.nbytes) for f in files], f"{url} {files!r}", True, files)


def content_key(located: Located) -> str:
    """Changes when the content may have changed.

    The user's own files go by what the file system says of them, before and after their digests are known; the
    store's own by their digests, since a chunk that is mended leaves the content as it was.
    """
    if located.manifest is not None and not any(file.identity for file in located.manifest.files):
        return f"{located.folder}:{located.manifest.digest}"
    state = hashlib.sha256(str(located.folder).encode())
    for name in located.names:
        state.update(repr((name, manifests.identity(located.folder / name))).encode())
    return state.hexdigest()
