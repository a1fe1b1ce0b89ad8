"""Weights as a function holds them: read-only tensors over memory that the whole host shares."""

from __future__ import annotations

import contextlib
import tempfile
import types
from collections.abc import Callable
from collections.abc import Mapping as Readonly
from pathlib import Path
from typing import TYPE_CHECKING

from dataflower.checkpoint.format import Header, TensorSpec, check_index, header_length, parse_header
from dataflower.checkpoint.layout import Placed, place
from dataflower.checkpoint.loader import is_index
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.region import Mapping
from dataflower.errors import Closed, NotFound, WeightsInvalid

if TYPE_CHECKING:
    import torch


SMALL_BYTES = 16 * 1024 * 1024
"""Up to here a copy of each function's own is cheaper than a further file."""


class Weights:
    """A model's weights in memory, as `checkpoint.open` gives them.

    Attributes:
        name: What the model was asked for by.
        digest: 64 hexadecimal digits that stand for the content of all files; what caches are keyed by.
        nbytes: Bytes of all files.
        shared: Whether other processes map the same memory.
        torch_device: What torch calls the device that has the tensors.

    The memory stays mapped until `close` was called and no tensor of it is left; then its place in the host's store may
    be given to another model. A write into a tensor is a segmentation fault. Usable from any thread, and after a fork.
    """

    def __init__(
        self,
        manifest: Manifest,
        mapping: Mapping,
        folder: Path,
        name: str = "",
        digest: str = "",
        *,
        shared: bool = False,
    ) -> None:
        """Made by `checkpoint.open`; `folder` is where the files lie on disk, if this process can see it."""
        self.name = name or manifest.name
        self.digest = digest or manifest.digest
        self.nbytes = manifest.nbytes
        self.shared = shared
        self.torch_device = "cpu"
        self._folder = folder
        self._mapping: Mapping | None = mapping
        self._places = {p.name: p for p in place((file.name, file.nbytes) for file in manifest.files)}
        self._headers: dict[str, Header] | None = None
        self._copied: tempfile.TemporaryDirectory[str] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the model's files: weights, configuration, tokenizer."""
        return tuple(self._places)

    def read(self, file: str) -> memoryview:
        """A file of the model, from memory, without a copy.

        Raises:
            NotFound: the model has no such file.
        """
        return self._data(file).toreadonly()

    @property
    def config_dir(self) -> Path:
        """A folder with `config.json`, tokenizer and the like, for libraries that want one.

        The model's own folder; where a container does not see that, a temporary one until `close`.
        """
        with contextlib.suppress(OSError):
            if self._folder.is_dir() and all((self._folder / name).is_file() for name in self._small()):
                return self._folder
        if self._copied is None:
            self._copied = tempfile.TemporaryDirectory(prefix="dataflower-model-")
            for name in self._small():
                (Path(self._copied.name) / name).write_bytes(self.read(name))
        return Path(self._copied.name)

    @property
    def metadata(self) -> Readonly[str, str]:
        """What the safetensors files say about themselves; of all of them together."""
        return {key: value for header in self._parsed().values() for key, value in header.metadata.items()}

    @property
    def may_copy(self) -> bool:
        """Whether a copy of one's own hurts nobody: the weights are not shared, or small."""
        return not self.shared or self.nbytes <= SMALL_BYTES

    def specs(self) -> Readonly[str, TensorSpec]:
        """Name -> dtype, shape and size of every tensor, without torch."""
        return {spec.name: spec for header in self._parsed().values() for spec in header.tensors}

    def tensors(self) -> Readonly[str, torch.Tensor]:
        """Name -> tensor over the shared memory. Made anew at each call; they share their memory."""
        return self._views(self._parsed(), lambda place: self._data(place.name))

    def close(self) -> None:
        """Let go of the memory; tensors that are still in use keep it. Idempotent."""
        self._mapping = None
        if self._copied is not None:
            self._copied.cleanup()
            self._copied = None

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _small(self) -> list[str]:
        return [name for name in self._places if not name.endswith(".safetensors") and not is_index(name)]

    def _views(
        self, parsed: Readonly[str, Header], data: Callable[[Placed], memoryview | torch.Tensor]
    ) -> Readonly[str, torch.Tensor]:
        from dataflower.checkpoint.tensors import views

        found: dict[str, torch.Tensor] = {}
        for file, header in parsed.items():
            found.update(views(header, data(self._places[file])))
        return types.MappingProxyType(found)

    def _open_mapping(self) -> Mapping:
        if self._mapping is None:
            raise Closed(f"the weights of {self.name} are closed")
        return self._mapping

    def _data(self, file: str) -> memoryview:
        mapping = self._open_mapping()
        place = self._places.get(file)
        if place is None:
            raise NotFound(f"{self.name} has no file {file!r}; it has {', '.join(self._places)}")
        return mapping.array(place.offset, place.nbytes)

    def _parsed(self) -> dict[str, Header]:
        if self._headers is None:
            headers: dict[str, Header] = {}
            seen: dict[str, str] = {}
            for file, place in self._places.items():
                if not file.endswith(".safetensors"):
                    continue
                where = f"{self.name}/{file}"
                data = self._data(file)
                header_length(data[:8], place.nbytes, where)
                headers[file] = parse_header(data, place.nbytes, where)
                for spec in headers[file].tensors:
                    if seen.setdefault(spec.name, file) != file:
                        raise WeightsInvalid(f"{where}: tensor {spec.name!r} is in {seen[spec.name]} as well")
            for file in filter(is_index, self._places):
                check_index(self._data(file), headers, f"{self.name}/{file}")
            self._headers = headers
        return self._headers
