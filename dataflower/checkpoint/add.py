"""`dataflower models add`: from what a user names to a model of the store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dataflower.checkpoint.catalog import Catalog
from dataflower.checkpoint.disk import check_name, slug
from dataflower.checkpoint.loader import Progress, ignore, list_folder
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.repack import repack as write_aligned
from dataflower.checkpoint.sources import as_url, is_url
from dataflower.errors import NotFound


def add(
    catalog: Catalog,
    source: str,
    name: str = "",
    *,
    copy: bool = False,
    repack: bool = False,
    progress: Progress = ignore,
    expect: Callable[[int], object] = ignore,
) -> Manifest:
    """Make the model at `source` (a URL, a folder, a safetensors or GGUF file) known; blocks until all of it is there.

    A folder of this machine is used where it lies, unless `copy`. What is converted or repacked is written into the
    store, and can't be fetched again from its source as it is then.

    Raises:
        NotFound: there is no such thing; the message says what it could have meant.
        Unavailable, WeightsInvalid, ResourceExhausted: see `Catalog.fetch`.
    """
    name = check_name(name or slug(source.rstrip("/")))
    local = None if is_url(source) else Path(source).expanduser()
    if local is not None and not local.exists():
        hint = (
            f"; for the hub: hf://{source}" if source.count("/") == 1 and not source.startswith((".", "/", "~")) else ""
        )
        raise NotFound(f"no file or folder {source!r}, and it is no URL{hint}")
    if source.endswith(".gguf"):
        return _add_gguf(catalog, source, local, name, progress=progress, expect=expect)
    if local is not None and local.is_dir() and not copy and not repack:
        expect(sum((local / file).stat().st_size for file in list_folder(local)))
        return catalog.register(local, name, progress=progress)
    if not repack:
        return catalog.fetch(as_url(source), name, progress=progress, expect=expect)
    with _scratch(catalog) as scratch:
        folder = local if local is not None and local.is_dir() else _fetched(catalog, source, name, progress, expect)
        built = scratch / name
        built.mkdir()
        for file in list_folder(folder):
            if file.endswith(".safetensors"):
                write_aligned(folder / file, built / file)
            else:
                shutil.copyfile(folder / file, built / file)
        return catalog.adopt(built, name)


def _fetched(catalog: Catalog, source: str, name: str, progress: Progress, expect: Callable[[int], object]) -> Path:
    catalog.fetch(as_url(source), name, progress=progress, expect=expect)
    return catalog.disk.root / name


def _add_gguf(
    catalog: Catalog,
    source: str,
    local: Path | None,
    name: str,
    *,
    progress: Progress,
    expect: Callable[[int], object],
) -> Manifest:
    from dataflower.checkpoint.gguf import convert

    with _scratch(catalog) as scratch:
        path = local
        if path is None:
            path = scratch / source.rpartition("/")[2]
            _download(source, path, progress, expect)
        built = scratch / name
        built.mkdir()
        convert(path, built)
        return catalog.adopt(built, name)


def _download(source: str, path: Path, progress: Progress, expect: Callable[[int], object]) -> None:
    from dataflower.checkpoint.digest import chunks
    from dataflower.checkpoint.sources import Source

    remote = Source(source)
    try:
        (file,) = remote.listing()
        expect(file.nbytes)
        with open(path, "wb") as write:
            for data in remote.stream(file.name, [length for _, length in chunks(file.nbytes)]):
                write.write(data)
                progress(len(data))
    finally:
        remote.close()


@contextmanager
def _scratch(catalog: Catalog) -> Iterator[Path]:
    """A folder on the store's file system that goes again, whatever happens."""
    root = catalog.disk.root
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=root) as folder:
        yield Path(folder)
