"""The disk tier: which folder a model's name means, and what is known of its files."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dataflower.checkpoint import manifest as manifests
from dataflower.checkpoint.digest import chunk_hash, chunks
from dataflower.checkpoint.loader import list_folder
from dataflower.checkpoint.manifest import META, FileEntry, Manifest
from dataflower.checkpoint.settings import StoreConfig
from dataflower.errors import InvalidArgument, NotFound, WeightsInvalid
from dataflower.spec.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class Located:
    """A model on the disk. `names`: its files, those of weights first.

    `manifest` is None while nothing is known of the files (a user's folder before its first load), or while they may
    be others than those that were registered (see `DiskTier.settle`).
    """

    name: str
    folder: Path
    names: tuple[str, ...]
    manifest_path: Path
    manifest: Manifest | None

    def sizes(self) -> list[tuple[str, int]]:
        """(name, bytes) of each file: as noted, or as it is now."""
        if self.manifest is not None:
            return [(file.name, file.nbytes) for file in self.manifest.files]
        return [(name, (self.folder / name).stat().st_size) for name in self.names]


def slug(url: str) -> str:
    """The name that a model gets if nobody names it: the last two parts of its URL or path."""
    parts = [part for part in re.split(r"[/\\]+", url.partition("://")[2] or url) if part not in ("", ".", "..")]
    tail = "--".join(parts[-2:]) if "://" in url else (parts or ["model"])[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip("-.").removesuffix(".safetensors").removesuffix(".gguf")


def check_name(name: str) -> str:
    """`name` itself. Raises InvalidArgument unless it can be the name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise InvalidArgument(f"{name!r} can't name a model: letters, digits, '.', '_' and '-', at most 128")
    return name


def _changed(folder: Path, manifest: Manifest) -> bool:
    """Whether the user has replaced or removed a file since."""
    try:
        return any(file.identity != manifests.identity(folder / file.name) for file in manifest.files)
    except FileNotFoundError:
        return True


def _is_content(path: Path, file: FileEntry) -> bool:
    """Whether a file of the right size holds what was noted."""
    with open(path, "rb") as data:
        return all(chunk_hash([data.read(size)]) == file.chunk(i) for i, (_, size) in enumerate(chunks(file.nbytes)))


class DiskTier:
    """The folder of models. Safe for many threads and processes: what changes does so under a lock of the kernel."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.root = config.models_dir.absolute()

    def names(self) -> tuple[str, ...]:
        """Models that are completely there, sorted."""
        if not self.root.is_dir():
            return ()
        return tuple(sorted(path.parent.parent.name for path in self.root.glob(f"[!.]*/{META}/manifest.json")))

    def locate(self, model: str) -> Located:
        """The model of that name, or in that folder, or the one file of weights of that path.

        Raises:
            NotFound: there is no such model; the message names similar ones.
            WeightsInvalid: the files contradict each other.
        """
        named = self.root / model / META / "manifest.json"
        if "/" not in model and named.is_file():
            return self._named(model, named)
        path = Path(model).expanduser()
        if path.is_file() and path.suffix == ".safetensors":
            return self._in_place(path.parent.resolve(), (path.name,), path.stem)
        if path.is_dir():
            folder = path.resolve()
            return self._in_place(folder, list_folder(folder), folder.name)
        if path.is_file():
            raise NotFound(f"{model} is no safetensors file: `dataflower models add {model}` may be able to convert it")
        hint = did_you_mean(model, self.names(), "`dataflower models ls` lists them")
        raise NotFound(f"no model {model!r}: neither in {self.root} nor a folder of that path ({hint})")

    def _named(self, name: str, path: Path) -> Located:
        manifest = manifests.read(path)
        if manifest is None:
            raise NotFound(f"{name} was added by another version of dataflower: add it again")
        if not manifest.location:
            names = tuple(file.name for file in manifest.files)
            return Located(name, self.root / name, names, path, manifest)
        folder = Path(manifest.location)
        if not folder.is_dir():
            raise NotFound(f"the folder of model {name}, {folder}, is gone")
        names = list_folder(folder)
        changed = names != tuple(file.name for file in manifest.files) or _changed(folder, manifest)
        return Located(name, folder, names, path, None if changed else manifest)

    def _in_place(self, folder: Path, names: tuple[str, ...], name: str) -> Located:
        """A folder of the user's: what is known of it lies in the store, not beside the files."""
        key = hashlib.sha256("\0".join((str(folder), *names)).encode()).hexdigest()[:32]
        at = self.root / ".known" / f"{key}.json"
        manifest = manifests.read(at)
        if manifest is not None and _changed(folder, manifest):
            manifest = None  # it is digested anew
        return Located(name, folder, names, at, manifest)

    def settle(self, located: Located) -> Located:
        """The same for a registered folder of which the file system says that it was changed.

        Files that were touched are read and, if they are what they were, noted as they are now. Whoever asks for the
        name is never given other weights than those that were added.

        Raises:
            WeightsInvalid: they are others now; the message names the file and what to do.
        """
        noted = manifests.read(located.manifest_path) if located.manifest_path.parent.name == META else None
        if located.manifest is not None or noted is None:
            return located
        add = f"`dataflower models add {located.folder} --name {located.name}`"
        mend = f"{add} takes it as it is now, or put the old file back"
        since = f"since model {located.name} was added"
        if added := sorted(set(located.names) - {file.name for file in noted.files}):
            raise WeightsInvalid(f"{located.folder / added[0]} has come {since}: {mend}")
        files = []
        for file in noted.files:
            path = located.folder / file.name
            try:
                now = manifests.identity(path)
                same = now == file.identity or (now[0] == file.nbytes and _is_content(path, file))
            except FileNotFoundError:
                raise WeightsInvalid(f"{path} is gone {since}: {mend}") from None
            if not same:
                raise WeightsInvalid(f"{path} has another content {since}: {mend}")
            files.append(msgspec.structs.replace(file, identity=now))
        settled = msgspec.structs.replace(noted, files=tuple(files))
        with contextlib.suppress(OSError), self.lock(located.name):  # a store that can't be written does without
            if manifests.read(located.manifest_path) == noted:
                manifests.write(located.manifest_path, settled)
        return dataclasses.replace(located, names=tuple(file.name for file in files), manifest=settled)

    def remember(self, located: Located, manifest: Manifest) -> None:
        """Note what a first load found out. A store that can't be written does without."""
        with contextlib.suppress(PermissionError):
            manifests.write(located.manifest_path, manifest)

    def meta(self, name: str) -> Path:
        """Folder of what the store notes of one of its models."""
        return self.root / name / META

    def is_pinned(self, name: str) -> bool:
        """Whether one of the store's models is to be kept, on disk and in memory."""
        return (self.meta(name) / "pinned").exists()

    def touch(self, name: str) -> None:
        """Note that one of the store's models is being used."""
        if self.meta(name).is_dir():
            with contextlib.suppress(OSError):  # read-only, or just removed
                (self.meta(name) / "used").touch()

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One process of this host at a time; blocks. The kernel lets go when the holder dies, however it dies."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
