"""Which libraries a zygote has imported before it forks."""

from __future__ import annotations

from collections.abc import Iterable

from dataflower.spec.workflow import Isolation

HEAVY = frozenset({"torch", "transformers"})
"""Packages that take a second or more to import, most of it the same second."""


Library = tuple[tuple[str, ...], Isolation | None]
"""Modules of a fork server, and the isolation of the stages that it is for."""


def is_heavy(modules: Iterable[str]) -> bool:
    """Whether any of them takes that long."""
    return any(module.partition(".")[0] in HEAVY for module in modules)


def stands_in(library: Library, other: Library) -> bool:
    """Whether a fork server may as well stay for the stages of another, for which it has enough and not much more."""
    covers = library[1] is other[1] and set(other[0]).issubset(library[0])
    return covers and is_heavy(library[0]) == is_heavy(other[0])


def zygote_kinds(preloads: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The zygotes for the stages of a workflow: one with all libraries of those that need torch, one for the others.

    A zygote with more libraries than a stage needs forks as quickly; a second one that imports torch again would take
    seconds of the very cores that the first stages run on.
    """
    families: dict[bool, dict[str, None]] = {}
    for preload in preloads:
        families.setdefault(is_heavy(preload), {}).update(dict.fromkeys(preload))
    return [tuple(modules) for _, modules in sorted(families.items())]
