"""What people do with models on the disk: add, list, remove, pin, verify."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dataflower.checkpoint import manifest as manifests
from dataflower.checkpoint.digest import chunk_hash, chunks
from dataflower.checkpoint.disk import DiskTier, Located, check_name, slug
from dataflower.checkpoint.eviction import Stored, victims
from dataflower.checkpoint.fetch import Fetch
from dataflower.checkpoint.format import LENGTH_BYTES, Header, check_index, header_length, parse_header
from dataflower.checkpoint.layout import place
from dataflower.checkpoint.loader import Arrival, Heal, Load, Progress, ignore, is_index, list_folder
from dataflower.checkpoint.manifest import FileEntry, Manifest
from dataflower.checkpoint.reader import Crew
from dataflower.checkpoint.region import Owned
from dataflower.checkpoint.sources import RemoteFile, Source, is_url
from dataflower.errors import NotFound, WeightsInvalid
from dataflower.spec.suggest import did_you_mean

PACKED = "packed:"
"""Sources of models that were made of others of the store begin so; see `packing`."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the store, as `dataflower models ls` shows it. `last_used`: seconds since the epoch."""

    name: str
    digest: str
    nbytes: int
    files: int
    source: str
    location: str
    pinned: bool
    last_used: float


@dataclass(frozen=True, slots=True)
class Damage:
    """A chunk that is not what it was. `mended`: it has been fetched again."""

    file: str
    offset: int
    mended: bool


class Catalog:
    """The models of a disk tier. Safe beside other processes that do the same."""

    def __init__(self, disk: DiskTier) -> None:
        self.disk = disk

    # --- add ---------------------------------------------------------------------------------------------------------

    def fetch(
        self,
        url: str,
        name: str = "",
        *,
        progress: Progress = ignore,
        expect: Callable[[int], object] = ignore,
        files: Sequence[RemoteFile] | None = None,
        owned: Owned | None = None,
        arrival: Arrival | None = None,
        ready: Callable[[Manifest], object] | None = None,
    ) -> Manifest:
        """Fetch a model into the store; a second attempt goes on where the first ended.

        Blocks, also while another process fetches the same one. What is there already is not fetched again.

        Args:
            url: of a folder with safetensors files, or of one such file.
            name: what it is to be called; by default made of the URL.
            progress: told of bytes as they arrive.
            expect: told the number of all bytes before the first.
            files: what the source lists, if it was asked before.
            owned: memory that is filled on the way, laid out as `files`.
            arrival: told how far that has got.
            ready: called when everything has come and been checked, before it is safe on the disk.

        Raises:
            NotFound, Unavailable, WeightsInvalid, ResourceExhausted: see `Fetch.run`.
        """
        name = check_name(name or slug(url))
        source = Source(url)
        try:
            files = files or source.listing()
            total = sum(file.nbytes for file in files)
            with self.disk.lock(name):
                expect(total)
                have = self._have(name, url, files)
                if have is not None:
                    if owned is not None:
                        self._read(name, have, owned, progress, arrival)
                    if ready is not None:
                        ready(have)
                    return have
                self.make_room(name, total)
                fetch = self._fetch(name, source, files, owned=owned, progress=progress, arrival=arrival)
                manifest = fetch.run()
                if ready is not None:
                    ready(manifest)
                fetch.commit(manifest)
                self.disk.touch(name)
        finally:
            source.close()
        return manifest

    def _fetch(
        self,
        name: str,
        source: Source,
        files: Sequence[RemoteFile],
        *,
        owned: Owned | None,
        progress: Progress,
        arrival: Arrival | None,
    ) -> Fetch:
        partial, target = self.disk.root / f".partial-{name}", self.disk.root / name
        threads = self.disk.config.models_threads
        return Fetch(source, files, partial, target, owned, progress, threads, arrival=arrival or Arrival())

    def _read(self, name: str, have: Manifest, owned: Owned, progress: Progress, arrival: Arrival | None) -> None:
        """Fill memory with a model that is on the disk already."""
        placed = place((file.name, file.nbytes) for file in have.files)
        known = {file.name: file for file in have.files}
        Load(self.disk.root / name, placed, owned, known, None, progress, arrival=arrival or Arrival()).run()

    def _have(self, name: str, url: str, files: Sequence[RemoteFile]) -> Manifest | None:
        """The model if it is there, and is what the source lists now as far as one can tell without reading it."""
        manifest = manifests.read(self.disk.meta(name) / "manifest.json")
        if manifest is None or manifest.source != url:
            return None
        there = {file.name: file for file in manifest.files}
        same = there.keys() == {file.name for file in files} and all(
            there[f.name].nbytes == f.nbytes and f.sha256 in ("", there[f.name].sha256) for f in files
        )
        return manifest if same else None

    def register(self, folder: Path, name: str = "", *, progress: Progress = ignore) -> Manifest:
        """Make a folder known by a name, where it lies: nothing is copied, its digests are taken.

        Raises:
            NotFound: there are no safetensors files.
            WeightsInvalid: one of them is none, or cut off.
        """
        folder = folder.expanduser().resolve()
        name = check_name(name or slug(folder.name))
        entries = scan(folder, list_folder(folder), self.disk.config.models_threads, progress)
        located = [msgspec.structs.replace(e, identity=manifests.identity(folder / e.name)) for e in entries]
        manifest = Manifest(name, "", tuple(located), str(folder))
        with self.disk.lock(name):
            self._install(name, None, manifest)
        return manifest

    def adopt(self, built: Path, name: str, source: str = "", *, progress: Progress = ignore) -> Manifest:
        """Take a finished folder (on the store's file system) over as a model of the store."""
        check_name(name)
        entries = scan(built, list_folder(built), self.disk.config.models_threads, progress)
        manifest = Manifest(name, source, tuple(entries))
        with self.disk.lock(name):
            self.make_room(name, manifest.nbytes)
            self._install(name, built, manifest)
        return manifest

    def _install(self, name: str, built: Path | None, manifest: Manifest) -> None:
        target = self.disk.root / name
        pinned = self.disk.is_pinned(name)
        shutil.rmtree(target, ignore_errors=True)
        if built is not None:
            manifests.write(built / manifests.META / "manifest.json", manifest)
            built.rename(target)
        else:
            manifests.write(target / manifests.META / "manifest.json", manifest)
        if pinned:
            (self.disk.meta(name) / "pinned").touch()
        self.disk.touch(name)

    def make_room(self, name: str, nbytes: int) -> tuple[str, ...]:
        """Remove the longest unused models until `nbytes` fit under the cap; gives their names. See `eviction`."""
        models = [
            Stored(m.name, m.nbytes, m.pinned, bool(m.source), m.last_used)
            for m in self.ls()
            if m.name != name and not m.location
        ]
        chosen = victims(models, nbytes, self.disk.config.models_disk_bytes, name)
        for victim in chosen:
            self._remove(victim)
        return chosen

    # --- the others --------------------------------------------------------------------------------------------------

    def ls(self) -> tuple[Listed, ...]:
        """All models, by name."""
        found = []
        for name in self.disk.names():
            meta = self.disk.meta(name)
            manifest = manifests.read(meta / "manifest.json")
            if manifest is not None:
                used = meta / "used"
                found.append(
                    Listed(
                        name,
                        manifest.digest,
                        manifest.nbytes,
                        len(manifest.files),
                        manifest.source,
                        manifest.location,
                        self.disk.is_pinned(name),
                        (used if used.exists() else meta / "manifest.json").stat().st_mtime,
                    )
                )
        return tuple(found)

    def rm(self, name: str) -> int:
        """Remove a model and what was packed of it; one that lies elsewhere is forgotten. Gives the bytes freed.

        Whoever has it in memory keeps it.

        Raises:
            NotFound: there is no such model.
        """
        located = self._named(name)
        freed = 0 if located.folder != self.disk.root / name else sum(nbytes for _, nbytes in located.sizes())
        with self.disk.lock(name):
            self._remove(name)
        made = [m for m in self.ls() if m.source.startswith(PACKED) and m.source.split(":", 2)[-1] == name]
        return freed + sum(self.rm(m.name) for m in made)

    def _remove(self, name: str) -> None:
        """First out of sight, then away: a half-removed model must not look like a whole one."""
        gone = self.disk.root / f".gone-{name}"
        shutil.rmtree(gone, ignore_errors=True)
        (self.disk.root / name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(self.disk.root / f".partial-{name}", ignore_errors=True)

    def pin(self, name: str, pinned: bool = True) -> None:
        """Keep a model on the disk and, once it is there, in memory; or let it make room again.

        Raises:
            NotFound: there is no such model.
        """
        self._named(name)
        mark = self.disk.meta(name) / "pinned"
        mark.touch() if pinned else mark.unlink(missing_ok=True)

    def verify(self, name: str, *, mend: bool = False, progress: Progress = ignore) -> tuple[Damage, ...]:
        """Read every file and compare it with what was noted when the model came in; `mend` fetches what is damaged.

        Raises:
            NotFound: there is no such model.
            WeightsInvalid: its folder lies elsewhere and a file has come, gone or another content.
            Unavailable: its source can't be reached.
        """
        located = self.disk.settle(self._named(name))
        assert located.manifest is not None
        found: list[Damage] = []
        heal = healer(located.manifest) if mend else None
        for entry in located.manifest.files:
            path = located.folder / entry.name
            for number, (offset, nbytes) in enumerate(chunks(entry.nbytes)):
                data = _part(path, offset, nbytes)
                progress(nbytes)
                if len(data) == nbytes and chunk_hash([data]) == entry.chunk(number):
                    continue
                if heal is not None:
                    mend_file(path, entry, number, heal)
                found.append(Damage(entry.name, offset, heal is not None))
            if path.is_file() and path.stat().st_size > entry.nbytes:
                found.append(Damage(entry.name, entry.nbytes, False))
        return tuple(found)

    def _named(self, name: str) -> Located:
        if name not in self.disk.names():
            hint = did_you_mean(name, self.disk.names(), "`dataflower models ls` lists them")
            raise NotFound(f"no model {name!r} in {self.disk.root} ({hint})")
        return self.disk.locate(name)


def _part(path: Path, offset: int, nbytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(nbytes)
    except FileNotFoundError:
        return b""


def healer(manifest: Manifest) -> Heal | None:
    """Gives chunks from where a model came from; None if that is nowhere."""
    if not is_url(manifest.source):
        return None
    source = Source(manifest.source)

    def heal(entry: FileEntry, number: int) -> bytes:
        (offset, nbytes) = list(chunks(entry.nbytes))[number]
        if source.has_ranges(entry.name):
            return source.read(entry.name, offset, nbytes)
        lengths = [length for _, length in chunks(entry.nbytes)][: number + 1]
        return list(source.stream(entry.name, lengths))[-1]

    return heal


def mend_file(path: Path, entry: FileEntry, number: int, heal: Heal) -> None:
    """Put the right bytes of a chunk into a file.

    Raises:
        WeightsInvalid: the source has another content now.
    """
    data = heal(entry, number)
    offset = list(chunks(entry.nbytes))[number][0]
    if chunk_hash([data]) != entry.chunk(number):
        raise WeightsInvalid(f"{path}: its source has another content now: remove the model and add it again")
    path.touch()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def scan(folder: Path, names: Sequence[str], threads: int, progress: Progress = ignore) -> list[FileEntry]:
    """Digests of files, read once.

    Raises:
        WeightsInvalid: a safetensors file is none, or cut off, or the index names tensors that it does not hold.
    """
    entries: dict[str, FileEntry] = {}
    headers: dict[str, Header] = {}

    def one(name: str) -> None:
        path = folder / name
        nbytes = path.stat().st_size
        state, hashes = hashlib.sha256(), []
        with open(path, "rb") as file:
            if name.endswith(".safetensors"):
                length = header_length(file.read(LENGTH_BYTES), nbytes, str(path))
                file.seek(0)
                headers[name] = parse_header(file.read(LENGTH_BYTES + length), nbytes, str(path))
                file.seek(0)
            for _, size in chunks(nbytes):
                data = file.read(size)
                if len(data) != size:
                    raise WeightsInvalid(f"{path}: cut off while it was read")
                state.update(data)
                hashes.append(chunk_hash([data]))
                progress(size)
        entries[name] = FileEntry(name, nbytes, state.hexdigest(), b"".join(hashes).hex())

    Crew(one, threads).run(names)
    for name in filter(is_index, names):
        check_index((folder / name).read_bytes(), headers, str(folder / name))
    return [entries[name] for name in names]
