"""What the starts of a host's functions need, as candidates for preloading: learned from starts, priors until then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dataflower.core.device.artifact import HOST, Candidate, Key, Kind, place_of
from dataflower.core.preload import Library, is_heavy

MIB = 1024 * 1024
BANDWIDTH = 1e9
"""Bytes a second at which weights are thought to load before a load was seen."""


@dataclass(slots=True)
class _Piece:
    """Memory and delay of something: as measured, or a guess. `nbytes` 0: not known, so not to be had ahead."""

    nbytes: int
    seconds: float


@dataclass(slots=True)
class _Function:
    library: Library
    models: tuple[str, ...]
    container: _Piece
    declared: tuple[str, ...] = ()
    """Models that its workflow names."""


@dataclass(slots=True)
class Catalog:
    """Functions by name, and what they share."""

    functions: dict[str, _Function] = field(default_factory=dict)
    libraries: dict[Library, _Piece] = field(default_factory=dict)
    models: dict[str, _Piece] = field(default_factory=dict)

    def add(self, name: str, library: Library, models: Iterable[str], memory_bytes: int | None) -> None:
        """A function may be called from now on. What is known of one of that name stays known."""
        shared = self._superset(library) or library
        if shared not in self.libraries:
            self.libraries[shared] = _Piece(200 * MIB, 2.5) if is_heavy(shared[0]) else _Piece(30 * MIB, 0.25)
        for model in models:
            self.models.setdefault(model, _Piece(0, 0.0))
        known = self.functions.get(name)
        container = known.container if known is not None else _Piece(memory_bytes or 256 * MIB, 1.0)
        declared = tuple(models)
        learned = known is not None and known.declared == declared
        self.functions[name] = _Function(shared, known.models if known and learned else declared, container, declared)

    def remove(self, name: str) -> None:
        """It is gone; what nobody else needs is no candidate any more."""
        self.functions.pop(name, None)
        used = {function.library for function in self.functions.values()}
        self.libraries = {library: piece for library, piece in self.libraries.items() if library in used}
        needed = {model for function in self.functions.values() for model in function.models}
        self.models = {model: piece for model, piece in self.models.items() if model in needed}

    def _superset(self, library: Library) -> Library | None:
        modules, isolation = library
        return next((k for k in self.libraries if k[1] is isolation and set(modules).issubset(k[0])), None)

    def library_started(self, modules: tuple[str, ...], seconds: float, nbytes: int) -> None:
        """A fork server with these modules took so long to import them, and takes so much memory."""
        for library, piece in self.libraries.items():
            if library[0] == modules:
                piece.seconds = max(seconds, 1e-3)
                piece.nbytes = nbytes or piece.nbytes

    def weights_sized(self, model: str, nbytes: int, seconds: float = 0.0) -> None:
        """Weights take so much memory, and this long to load (0: unknown); 0 bytes: there are none of that name."""
        piece = self.models.get(model)
        if piece is not None:
            piece.nbytes = nbytes
            piece.seconds = seconds or piece.seconds or nbytes / BANDWIDTH

    def container_started(self, name: str, seconds: float, opened: Iterable[tuple[str, int, float, bool]]) -> None:
        """A container of a function was ready after `seconds` in its process.

        `opened`: weights that it opened: name, bytes, seconds, and whether they were there.
        """
        function = self.functions.get(name)
        if function is None:
            return
        found = tuple(opened)
        for model, nbytes, waited_s, was_there in found:
            piece = self.models.setdefault(model, _Piece(0, 0.0))
            piece.nbytes = nbytes
            if not was_there or not piece.seconds:
                piece.seconds = nbytes / BANDWIDTH if was_there else waited_s
            seconds -= waited_s
        if found:  # the workflow may say it otherwise: by a name for weights that are held laid out, or not at all
            function.models = tuple(dict.fromkeys(model for model, *_ in found))
        function.container.seconds = max(seconds, 1e-3)

    def container_sized(self, name: str, nbytes: int) -> None:
        """A container of a function has so much memory of its own."""
        function = self.functions.get(name)
        if function is not None and nbytes > 0:
            function.container.nbytes = nbytes

    def candidates(self) -> dict[Key, Candidate]:
        """All that could be ready: fork servers, weights (on the device where they are used, if it is one), and
        containers with all that is in them.

        An adapter and warmed-up kernels live in a function's container, so the three are one artifact, of kind KERNELS.
        """
        found: dict[Key, Candidate] = {}

        def put(candidate: Candidate) -> None:
            found[candidate.key] = candidate

        for library, piece in self.libraries.items():
            users = tuple(name for name, f in self.functions.items() if f.library == library)
            put(Candidate(library_name(library), Kind.LIBRARY, HOST, piece.nbytes, piece.seconds, users))
        for model, piece in self.models.items():
            users = tuple(name for name, f in self.functions.items() if model in f.models)
            if not piece.nbytes or not users:
                continue
            homes = dict.fromkeys((library_name(self.functions[user].library), HOST) for user in users)
            name, place = weights_key(model)
            put(Candidate(name, Kind.BACKBONE, place, piece.nbytes, piece.seconds, users, (tuple(homes),)))
        for name, function in self.functions.items():
            needs = [((library_name(function.library), HOST),)]
            needs += [(weights_key(model),) for model in function.models if self.models[model].nbytes]
            piece = function.container
            own = Candidate(
                container_name(name), Kind.KERNELS, HOST, piece.nbytes, piece.seconds, (name,), tuple(needs)
            )
            put(own)
        return found

    def names(self) -> Mapping[str, Library | str]:
        """Artifact -> the library, model or function that it stands for."""
        return {
            **{library_name(library): library for library in self.libraries},
            **{weights_name(model): model for model in self.models},
            **{container_name(function): function for function in self.functions},
        }


def library_name(library: Library) -> str:
    """Of the artifact."""
    modules, isolation = library
    kind = "" if isolation is None else f" ({isolation.value})"
    return f"libraries {','.join(modules) or 'plain'}{kind}"


def weights_name(model: str) -> str:
    """Of the artifact."""
    return f"weights {model}"


def weights_key(model: str) -> Key:
    """Of the artifact, and where it is."""
    return weights_name(model), place_of(model)[1]


def container_name(function: str) -> str:
    """Of the artifact."""
    return f"container {function}"
