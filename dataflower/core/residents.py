"""What stages with weights have in memory: containers, fork servers with their libraries, weights. Books, no policy.

Containers are counted with adapter and warmed-up kernels in them and with what they have grown by since (keys and
values of prompts), as they were measured; weights once for all who share them. Who leaves is `core.offloading`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dataflower.core.container import Container, ContainerPhase
from dataflower.core.device.artifact import HOST, Candidate, Key, Kind
from dataflower.core.device.catalog import Catalog, container_name, library_name, weights_name
from dataflower.core.pool import Pool
from dataflower.core.preload import Library

PRIOR_BYTES = 256 * 1024 * 1024
"""What a container is thought to take before one was measured, if its stage states no limit."""
LEAST_GROWN = 4 * 1024 * 1024
"""Growth of a container that is worth to be given back by itself."""

GOING = (ContainerPhase.DRAINING, ContainerPhase.LEAVING)
"""Phases of a container that is not there any more soon."""


@dataclass(slots=True)
class Residents:
    """Who is in memory, who is on the way out, and how large each is, in bytes.

    Attributes:
        pools: to the name of the function: `workflow/stage`.
        sizes: the most that a container of a function took when it was new, or trimmed.
        bases: by container: what it took then.
        trimming: containers that were told to give back what they have kept.
        measured: by container: when its memory was asked for last, and how much it was.
        weights: weights in memory.
        dropping: weights that were told to leave.
        fixed: weights that could not be dropped, since others use them.
        libraries: fork servers that run.
        imported: what they, and those that are gone, took when they had imported their libraries.
        outside: pools whose containers come from there and don't count here.
        unloading: fork servers that were told to end with their last container, until that is clear.
        kept: those that did not: they have containers of stages that don't count here.
    """

    catalog: Catalog = field(default_factory=Catalog)
    pools: dict[Pool, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    bases: dict[int, int] = field(default_factory=dict)
    trimming: set[int] = field(default_factory=set)
    measured: dict[int, tuple[float, int]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    dropping: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)
    libraries: dict[Library, int] = field(default_factory=dict)
    imported: dict[Library, int] = field(default_factory=dict)
    outside: dict[Library, dict[Pool, None]] = field(default_factory=dict)
    unloading: set[Library] = field(default_factory=set)
    kept: set[Library] = field(default_factory=set)

    def used(self) -> int:
        """Bytes of all containers, and of weights that are in memory or on their way there."""
        containers = sum(self.size(c) for pool in self.pools for c in pool.containers.values())
        coming: dict[str | Library, int] = {}
        for pool in self.pools:
            if pool.starting:
                coming.update(self._missing(pool))
        return containers + sum(self.weights.values()) + sum(coming.values()) + sum(self.libraries.values())

    def soon(self) -> int:
        """Bytes of what has been told to leave, and of what leaves when its tasks are over."""
        going = (c for pool in self.pools for c in pool.containers.values() if c.phase in GOING)
        trimmed = (
            self.grown(c)
            for pool in self.pools
            for c in pool.containers.values()
            if c.number in self.trimming and c.phase not in GOING
        )
        weights = sum(self.weights[model] for model in self.dropping)
        libraries = sum(self.libraries[library] for library in self.unloading)
        return sum(map(self.size, going)) + weights + libraries + sum(trimmed)

    def size(self, container: Container) -> int:
        """As it was measured, or as large as one of its stage is thought to be."""
        _, nbytes = self.measured.get(container.number, (0.0, 0))
        return nbytes or self.guess(container.pool)

    def grown(self, container: Container) -> int:
        """By how much more memory than when it was new."""
        _, nbytes = self.measured.get(container.number, (0.0, 0))
        more = nbytes - self.bases.get(container.number, nbytes)
        return more if more >= LEAST_GROWN else 0

    def guess(self, pool: Pool) -> int:
        """What one more container of it takes, without weights and libraries."""
        return self.sizes.get(self.pools[pool], pool.stage.resources.memory_bytes or PRIOR_BYTES)

    def need(self, pool: Pool) -> int:
        """What one more container of it takes, with what it needs that is neither in memory nor on its way there."""
        coming = {thing for other in self.pools if other.starting for thing in self._missing(other)}
        return self.guess(pool) + sum(nbytes for thing, nbytes in self._missing(pool).items() if thing not in coming)

    def library(self, pool: Pool) -> Library | None:
        """Where its containers are forked; None: it doesn't count here."""
        name = self.pools.get(pool)
        return None if name is None else self.catalog.functions[name].library

    def _missing(self, pool: Pool) -> dict[str | Library, int]:
        """Weights and libraries that it needs and that are not in memory."""
        function = self.catalog.functions[self.pools[pool]]
        sizes, library = self.catalog.models, function.library
        found: dict[str | Library, int] = {
            model: sizes[model].nbytes for model in function.models if model not in self.weights and model in sizes
        }
        if library in self.imported and library not in self.libraries:
            found[library] = self.imported[library]
        return found

    def loaded(self, first_s: Callable[[Pool], float]) -> dict[Key, Candidate]:
        """What is there and not about to leave, as artifacts.

        `first_s`: how long a request of a function takes to its first token without what was kept of others.
        """
        known = self.catalog.candidates()
        found: dict[Key, Candidate] = {}
        for model, nbytes in self.weights.items():
            key = (weights_name(model), HOST)
            if model not in self.dropping and model not in self.fixed:
                found[key] = replace(known[key], nbytes=nbytes) if key in known else _unused(key[0], nbytes)
        for library, nbytes in self.libraries.items():
            key = (library_name(library), HOST)
            free = not any(user.containers for user in self.outside.get(library, ()))
            if free and library not in self.unloading and library not in self.kept:
                found[key] = replace(known[key], nbytes=nbytes) if key in known else _unneeded(key[0], nbytes)
        for pool, name in self.pools.items():
            key = (container_name(name), HOST)
            there = [c for c in pool.containers.values() if c.phase not in GOING]
            if not there or key not in known:
                continue
            grown = sum(self.grown(c) for c in there if c.number not in self.trimming)
            if grown:
                cache = Candidate(cache_name(name), Kind.CACHE, HOST, grown, first_s(pool), (name,), ((key,),))
                found[cache.key] = cache
            own = sum(self.size(c) - self.grown(c) for c in there)
            before = found[key].nbytes if key in found else 0
            found[key] = replace(known[key], nbytes=before + own)
        return found


def cache_name(function: str) -> str:
    """The artifact that is what the containers of a function have kept of prompts."""
    return f"cache {function}"


def _unneeded(artifact: str, nbytes: int) -> Candidate:
    """A fork server that no stage needs any more."""
    return Candidate(artifact, Kind.LIBRARY, HOST, nbytes, 0.0, ())


def _unused(artifact: str, nbytes: int) -> Candidate:
    """Weights that no stage needs any more."""
    return Candidate(artifact, Kind.BACKBONE, HOST, nbytes, 0.0, ())
