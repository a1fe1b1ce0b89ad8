"""Several adapters in one batch: one pair of small products at each place, whatever the number of adapters.

The adapters of a batch are laid side by side, `down` under `down` and `up` beside `up`; a mask keeps each token to
the columns of its own adapter. The rest are products with exact zeros, so a token gets what it would get with its
adapter alone. (S-LoRA, MLSys 2024, and Punica, MLSys 2024, gather per token instead: right for GPUs, more memory
traffic and more operators than the products themselves on CPUs.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from dataflower.llm.adapters import Adapter, LoraPart

STACKS = 4
"""Sets of adapters whose matrices are kept laid out."""


@dataclass(frozen=True, slots=True)
class Group:
    """Modules with the same input whose outputs lie side by side: (full name, outputs) of each."""

    parts: tuple[tuple[str, int], ...]

    @property
    def outputs(self) -> int:
        """Of all together."""
        return sum(outputs for _, outputs in self.parts)


@dataclass(frozen=True, slots=True)
class _Stacked:
    down: torch.Tensor
    up: torch.Tensor
    owners: tuple[int, ...]
    """Which adapter of the stack each column belongs to."""


class Stack:
    """The matrices of a set of adapters at every place, side by side."""

    def __init__(self, adapters: Sequence[Adapter], groups: Mapping[str, Group]) -> None:
        self.adapters = tuple(adapters)
        self.index = {adapter.digest: index for index, adapter in enumerate(adapters)}
        self.places = {key: made for key, group in groups.items() if (made := _stack(self.adapters, group)) is not None}


@dataclass(slots=True)
class LoraBatch:
    """The adapters of one step. `members`: (tokens,) index of each token's adapter in the stack, -1 = none."""

    stack: Stack
    members: torch.Tensor
    masks: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def add(self, key: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`out` (tokens, outputs) plus what the adapters add at a place with inputs `x` (tokens, inputs)."""
        place = self.stack.places.get(key)
        if place is None:
            return out
        mask = self.masks.get(place.owners)
        if mask is None:
            owners = torch.tensor(place.owners, device=x.device)
            mask = self.masks[place.owners] = (self.members[:, None] == owners).to(x.dtype)
        return torch.addmm(out, functional.linear(x, place.down).mul_(mask), place.up)


class LoraStacks:
    """Stacks by the set of adapters in them, a few of them kept. Belongs to the thread that runs the model."""

    def __init__(self, groups: Mapping[str, Group], device: torch.device) -> None:
        """`groups`: by the key that the model uses for the place."""
        self._groups = groups
        self._device = device
        self._stacks: OrderedDict[frozenset[str], Stack] = OrderedDict()
        self._last: tuple[Sequence[tuple[Adapter | None, int]], LoraBatch] | None = None
        """The last batch, and what it was made for."""

    def batch(self, per_token: Sequence[tuple[Adapter | None, int]]) -> LoraBatch | None:
        """For tokens with these adapters (adapter, how many tokens in a row); None if there is no adapter at all."""
        if self._last is not None and self._last[0] == per_token:  # as in all steps that only decode
            return self._last[1]
        adapters = {adapter.digest: adapter for adapter, _ in per_token if adapter is not None}
        if not adapters:
            return None
        stack = self._find(adapters)
        members = [
            -1 if adapter is None else stack.index[adapter.digest] for adapter, count in per_token for _ in range(count)
        ]
        batch = LoraBatch(stack, torch.tensor(members, device=self._device))
        self._last = (per_token, batch)
        return batch

    def drop(self, digest: str) -> None:
        """An adapter is gone: let go of all that holds it."""
        self._last = None
        for key in [key for key in self._stacks if digest in key]:
            del self._stacks[key]

    def _find(self, adapters: Mapping[str, Adapter]) -> Stack:
        wanted = frozenset(adapters)
        fitting = [key for key in self._stacks if wanted <= key and len(key) <= 2 * len(wanted)]
        key = min(fitting, key=len, default=wanted)
        if key not in self._stacks:
            self._stacks[key] = Stack(list(adapters.values()), self._groups)
            if len(self._stacks) > STACKS:
                self._stacks.popitem(last=False)
        self._stacks.move_to_end(key)
        return self._stacks[key]


def _stack(adapters: Sequence[Adapter], group: Group) -> _Stacked | None:
    found: list[tuple[int, int, LoraPart]] = []
    for owner, adapter in enumerate(adapters):
        offset = 0
        for name, outputs in group.parts:
            if name in adapter.parts:
                found.append((owner, offset, adapter.parts[name]))
            offset += outputs
    if not found:
        return None
    down = torch.cat([part.down for _, _, part in found])
    up = torch.zeros((down.shape[0], group.outputs), dtype=down.dtype, device=down.device)
    owners: list[int] = []
    for owner, offset, part in found:
        rank = part.down.shape[0]
        up[len(owners) : len(owners) + rank, offset : offset + part.up.shape[0]] = part.up.T
        owners += [owner] * rank
    return _Stacked(down, up, tuple(owners))
