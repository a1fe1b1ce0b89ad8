"""Where the fast path takes its weights from: plain tensors, used where they lie or laid out by this process, or
weights that were laid out once for all processes of the host.

The second kind is written by `Recorder`: an ordinary safetensors file, in which what is laid out stands as bytes under
the name of its place, and a note in the metadata says in which layout.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from dataflower.llm import opaque
from dataflower.llm.embedding import Embedding, PlainEmbedding, TiedEmbedding, tied
from dataflower.llm.errors import UnsupportedModel
from dataflower.llm.linear import Linear, can_pack, lay_out

NOTE = "dataflower.laid_out"
"""Key of the note in the file's metadata."""
VERSION = 2

Write = Callable[[str, torch.Tensor], None]
"""Takes a tensor by its name in the file; it is good only during the call."""


class Parts(Protocol):
    """Weights by what the model needs them for."""

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor of this name."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the checkpoint, in the dtype and on the device of the model."""
        ...

    def linear(self, place: str, names: Sequence[str]) -> Linear:
        """The modules `names` (outputs side by side), for one place in the computation."""
        ...

    def embedding(self, name: str, head: str | None) -> Embedding:
        """The embedding `name`. `head`: the place, asked for before, that has the same weight; None: there is none."""
        ...


class Plain:
    """Tensors as the checkpoint holds them."""

    def __init__(
        self, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device, *, packed: bool
    ) -> None:
        """`packed`: lay them out, where that can be done: an own copy. Otherwise they are used where they lie."""
        self._weights, self._dtype, self._device, self._packed = weights, dtype, device, packed

    def has(self, name: str) -> bool:
        """See `Parts`."""
        return name in self._weights

    def tensor(self, name: str) -> torch.Tensor:
        """See `Parts`."""
        return self._weights[name].to(self._device, self._dtype)

    def linear(self, place: str, names: Sequence[str]) -> Linear:
        """See `Parts`."""
        weights = [self.tensor(f"{name}.weight") for name in names]
        bias = self._bias(names, weights)
        if not (self._packed and can_pack(weights[0])):
            return Linear(weights, bias)
        return Linear([lay_out(weights[0] if len(weights) == 1 else torch.cat(weights))], bias)

    def embedding(self, name: str, head: str | None) -> Embedding:
        """See `Parts`. Whoever has the plain weights mapped takes no more memory for them."""
        return PlainEmbedding(self.tensor(name))

    def _bias(self, names: Sequence[str], weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
        if not any(self.has(f"{name}.bias") for name in names):
            return None
        return torch.cat(
            [
                self.tensor(f"{name}.bias") if self.has(f"{name}.bias") else weight.new_zeros(weight.shape[0])
                for name, weight in zip(names, weights, strict=True)
            ]
        )


class Recorder:
    """Lays everything out that a model asks for, and hands it to be written instead of keeping it."""

    def __init__(self, plain: Plain, write: Write) -> None:
        """`plain`: packed, on the CPU."""
        self._plain, self._write = plain, write
        self._layouts: dict[bytes, int] = {}
        self._laid: dict[str, tuple[tuple[int, ...], str, int]] = {}
        self._head: tuple[str, torch.Tensor] = ("", torch.empty(0, dtype=torch.uint8))
        """The last place, and its bytes."""
        self._kept: torch.Tensor | None = None

    def has(self, name: str) -> bool:
        """See `Parts`."""
        return self._plain.has(name)

    def tensor(self, name: str) -> torch.Tensor:
        """See `Parts`."""
        found = self._plain.tensor(name)
        self._write(name, found)
        return found

    def linear(self, place: str, names: Sequence[str]) -> Linear:
        """See `Parts`."""
        made = self._plain.linear(place, names)
        (weight,) = made.weights
        if not weight.is_mkldnn:
            raise UnsupportedModel(f"{place}: this processor has no layout of its own for {weight.dtype}")
        data, layout = opaque.take_apart(weight)
        number = self._layouts.setdefault(layout, len(self._layouts))
        self._laid[place] = (tuple(weight.shape), str(weight.dtype).removeprefix("torch."), number)
        self._write(place, data)
        self._head, self._kept = (place, data), weight
        if made.bias is not None:
            self._write(f"{place}.bias", made.bias)
        return Linear([data.new_empty(0, 0)])  # the model is thrown away: it must not keep them all

    def embedding(self, name: str, head: str | None) -> Embedding:
        """See `Parts`: written only if the head's rows can't be read, which is found out row by row."""
        plain = self._plain.tensor(name)
        place, data = self._head
        found = tied(data, plain) if place == head else None
        self._kept = None
        return found or PlainEmbedding(self.tensor(name))

    def note(self) -> dict[str, str]:
        """The metadata of the file, once all is written."""
        layouts = [base64.b64encode(layout).decode() for layout in self._layouts]
        return {NOTE: json.dumps({"made_by": made_by(), "layouts": layouts, "laid": self._laid})}


def made_by() -> str:
    """What can read its own layouts only. (The processor is no part of it: another one computes right, but slowly.)"""
    return f"{VERSION} of torch {torch.__version__}"


class LaidOut:
    """Weights that were laid out before, used where they lie."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], dtype: torch.dtype) -> None:
        """Over the tensors of the file.

        Raises:
            UnsupportedModel: They were laid out by another version, or in another dtype.
        """
        self._tensors, self._dtype = tensors, dtype
        note = json.loads(metadata[NOTE])
        if note["made_by"] != made_by():
            raise UnsupportedModel(f"weights in layout {note['made_by']} do not fit {made_by()}")
        self._layouts = [base64.b64decode(layout) for layout in note["layouts"]]
        self._laid: dict[str, tuple[list[int], str, int]] = note["laid"]
        wrong = next((name for _, name, _ in self._laid.values() if getattr(torch, name) is not dtype), None)
        if wrong is not None:
            raise UnsupportedModel(f"these weights are laid out in {wrong}, not in {dtype}")

    def has(self, name: str) -> bool:
        """See `Parts`."""
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        """See `Parts`."""
        return self._tensors[name]

    def linear(self, place: str, names: Sequence[str]) -> Linear:
        """See `Parts`."""
        (rows, columns), _, number = self._laid[place]
        data = self._tensors[place]
        weight = opaque.put_together(data, (rows, columns), self._dtype, self._layouts[number])
        return Linear([weight], self._tensors.get(f"{place}.bias"), owner=data)

    def embedding(self, name: str, head: str | None) -> Embedding:
        """See `Parts`."""
        if self.has(name) or head is None:
            return PlainEmbedding(self.tensor(name))
        (_, width), _, _ = self._laid[head]
        return TiedEmbedding(self._tensors[head], width, self._dtype)
