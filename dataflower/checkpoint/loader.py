"""A model's files from a folder into memory, every chunk checked on its way."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Readonly
from dataclasses import dataclass, field
from pathlib import Path

from dataflower.checkpoint import manifest as manifests
from dataflower.checkpoint.digest import CHUNK_BYTES, chunk_hash, chunks
from dataflower.checkpoint.format import LENGTH_BYTES, header_length, parse_header, shards
from dataflower.checkpoint.layout import Placed, pages
from dataflower.checkpoint.manifest import FileEntry, Manifest
from dataflower.checkpoint.reader import Crew, File
from dataflower.checkpoint.region import Owned
from dataflower.errors import NotFound, WeightsInvalid

INDEX = "model.safetensors.index.json"
_SMALL = (".json", ".txt", ".jinja", ".model", ".tiktoken")
"""Endings of what belongs to a model beside its weights: configuration, tokenizer, chat template."""
_MAX_SMALL_BYTES = 256 * 1024 * 1024

Heal = Callable[[FileEntry, int], bytes]
"""Gives the right bytes of a chunk (file, number of the chunk), from where the model came from.

Raises WeightsInvalid if it can't.
"""
Progress = Callable[[int], object]
"""Told the number of bytes that have just arrived, from any thread."""


def ignore(nbytes: int) -> None:
    """A `Progress` that nobody looks at."""


def select(names: Iterable[str], read: Callable[[str], bytes], where: str) -> tuple[str, ...]:
    """Which files of a folder make up the model: weights (one file, or those that the index lists), then small ones.

    Raises:
        NotFound: there are no safetensors files; the message says what there is instead.
        WeightsInvalid: the index names files that are not there.
    """
    there = set(names)
    weights: Sequence[str] = sorted(name for name in there if name.endswith(".safetensors"))
    if INDEX in there:
        weights = shards(read(INDEX), f"{where}/{INDEX}")
        if missing := [name for name in weights if name not in there]:
            raise WeightsInvalid(f"{where}: {INDEX} lists {missing[0]!r}, which is not there ({len(missing)} missing)")
    elif "model.safetensors" in there:
        weights = ["model.safetensors"]
    if not weights:
        others = sorted(name for name in there if name.endswith((".bin", ".gguf", ".pt", ".pth")))
        hint = "no weights at all"
        if any(name.endswith(".gguf") for name in others):
            hint = f"`dataflower models add` converts {others[0]!r}; name the file"
        elif others:
            hint = f"{others[0]!r} is in another format: save the model with save_pretrained(safe_serialization=True)"
        raise NotFound(f"{where}: no safetensors files ({hint})")
    small = sorted(name for name in there if name.endswith(_SMALL))
    return (*weights, *small)


class Arrival:
    """How far a load has got; written by its threads, read by any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ends: Sequence[int] = ()
        self._done: set[int] = set()
        self._next = 0
        self._over = False
        self.arrived = 0
        """Bytes that are there and checked."""
        self.prefix = 0
        """So many of the memory's first bytes are there and checked, without a gap."""

    def expect(self, ends: Sequence[int]) -> None:
        """Offsets in memory at which the chunks end, in their order."""
        self._ends = ends

    def mark(self, number: int, nbytes: int) -> None:
        """A chunk is there."""
        with self._changed:
            self.arrived += nbytes
            self._done.add(number)
            while self._next in self._done:
                self._done.remove(self._next)
                self.prefix = self._ends[self._next]
                self._next += 1
            self._changed.notify_all()

    def finish(self) -> None:
        """Nothing more will come, be it done or failed."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait(self, beyond: int) -> int:
        """The prefix, as soon as it is longer than `beyond` or nothing more will come; blocks."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self.prefix > beyond)
            return self.prefix


@dataclass(frozen=True, slots=True)
class Job:
    """One chunk of one file. `number`: its place among all chunks of the model."""

    number: int
    place: Placed
    offset: int
    nbytes: int


def jobs(placed: Sequence[Placed], arrival: Arrival) -> list[Job]:
    """Every chunk of every file, in the order of the memory."""
    found: list[Job] = []
    for place in placed:
        found += [Job(len(found) + i, place, *chunk) for i, chunk in enumerate(chunks(place.nbytes))]
    arrival.expect([job.place.offset + job.offset + job.nbytes for job in found])
    return found


@dataclass(slots=True)
class Load:
    """One load: files of `folder` into the places of `owned`.

    `known`: what was noted of the files, by name; chunks of others are hashed and noted in `hashes`. A chunk that is
    damaged or missing is asked of `heal`, put into memory, and written back into the file if that can be written.
    """

    folder: Path
    placed: Sequence[Placed]
    owned: Owned
    known: dict[str, FileEntry] = field(default_factory=dict)
    heal: Heal | None = None
    progress: Progress = ignore
    threads: int = 4
    stop: Callable[[], bool] = lambda: False
    direct: bool = True
    hashes: dict[str, list[bytes]] = field(default_factory=dict)
    healed: list[str] = field(default_factory=list)
    """`FILE, chunk NUMBER` for each chunk that had to be fetched anew."""
    arrival: Arrival = field(default_factory=Arrival)

    def run(self) -> None:
        """Read everything.

        Raises:
            WeightsInvalid: a chunk is not what it was when the model came in, and can't be fetched again.
            OSError: the disk fails.
        """
        files: dict[str, File | None] = {}
        try:
            for place in self.placed:
                try:
                    files[place.name] = File(self.folder / place.name, self.direct)
                except FileNotFoundError:
                    if place.name not in self.known or self.heal is None:
                        raise WeightsInvalid(f"{self.folder / place.name} is missing") from None
                    files[place.name] = None
                self.hashes[place.name] = [b""] * len(range(0, place.nbytes, CHUNK_BYTES))
            Crew(self._chunk_of(files), self.threads, self.stop).run(jobs(self.placed, self.arrival))
        finally:
            for file in files.values():
                if file is not None:
                    file.close()

    def _chunk_of(self, files: Readonly[str, File | None]) -> Callable[[Job], None]:
        return lambda job: self._chunk(files[job.place.name], job)

    def _chunk(self, file: File | None, job: Job) -> None:
        place, offset, nbytes = job.place, job.offset, job.nbytes
        views = self.owned.views(place.offset + offset, pages(nbytes))
        exact = self.owned.views(place.offset + offset, nbytes)
        count = 0 if file is None else file.read_into(views, offset)
        number = offset // CHUNK_BYTES
        entry = self.known.get(place.name)
        if entry is None:
            if count < nbytes:
                raise WeightsInvalid(f"{self.folder / place.name}: cut off while it was read, at byte {offset + count}")
            self.hashes[place.name][number] = chunk_hash(exact)
        else:
            wanted = entry.chunk(number)
            if count < nbytes or chunk_hash(exact) != wanted:
                self._mend(entry, number, exact, short=count < nbytes)
            self.hashes[place.name][number] = wanted
        self.arrival.mark(job.number, nbytes)
        self.progress(nbytes)

    def _mend(self, entry: FileEntry, number: int, exact: Sequence[memoryview], *, short: bool) -> None:
        path, offset = self.folder / entry.name, number * CHUNK_BYTES
        what = "cut off" if short else "damaged"
        if self.heal is None:
            raise WeightsInvalid(
                f"{path}: {what} in the chunk at byte {offset}: the file is not what it was when the model was added. "
                "Restore it, or add the model again"
            )
        data = self.heal(entry, number)
        if chunk_hash([data]) != entry.chunk(number):
            raise WeightsInvalid(
                f"{path}: {what} in the chunk at byte {offset}, and what its source gives now is another "
                "content. Remove the model and add it again"
            )
        at = 0
        for view in exact:
            view[:] = data[at : at + len(view)]
            at += len(view)
        with contextlib.suppress(OSError):  # memory has the right bytes now; the next load may heal the file again
            path.touch()
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(data)
        self.healed.append(f"{entry.name}, chunk {number}")


def describe(folder: Path, names: Sequence[str], load: Load, *, name: str, source: str = "") -> Manifest:
    """The manifest of files that were just loaded for the first time, with their digests taken from memory.

    Raises:
        WeightsInvalid: a file is no safetensors file, or cut off.
    """
    places = {place.name: place for place in load.placed}
    for place in load.placed:
        if place.name.endswith(".safetensors"):
            check_header(load.owned, place, str(load.folder / place.name))
    shas: dict[str, str] = {}

    def digest(file: str) -> None:
        state, at = hashlib.sha256(), places[file]
        for view in load.owned.views(at.offset, at.nbytes):
            state.update(view)
        shas[file] = state.hexdigest()

    Crew(digest, load.threads, load.stop).run(names)
    entries = tuple(
        FileEntry(
            file,
            places[file].nbytes,
            shas[file],
            b"".join(load.hashes[file]).hex(),
            manifests.identity(folder / file),
        )
        for file in names
    )
    return Manifest(name, source, entries)


def check_header(owned: Owned, place: Placed, file: str) -> None:
    """Raises WeightsInvalid unless what lies in memory is a whole safetensors file."""
    prefix = b"".join(owned.views(place.offset, min(LENGTH_BYTES, place.nbytes)))
    length = header_length(prefix, place.nbytes, file)
    parse_header(b"".join(owned.views(place.offset, LENGTH_BYTES + length)), place.nbytes, file)


def list_folder(folder: Path) -> tuple[str, ...]:
    """Names of the files of the model in a folder; see `select`."""
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    chosen = select(names, lambda name: (folder / name).read_bytes(), str(folder))
    return tuple(
        name for name in chosen if name.endswith(".safetensors") or (folder / name).stat().st_size <= _MAX_SMALL_BYTES
    )


def is_index(name: str) -> bool:
    """Whether a file lists shards (it is read with the weights, not shown as configuration)."""
    return name.endswith(".safetensors.index.json")
