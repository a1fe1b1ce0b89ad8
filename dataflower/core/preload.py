"""Which libraries a zygote has imported before it forks."""

from __future__ import annotations

from collections.abc import Iterable

HEAVY = frozenset({"torch", "transformers"})
"""Packages that take a second or more to import, most of it the same second."""


def zygote_kinds(preloads: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The zygotes for the stages of a workflow: one with all libraries of those that need torch, one for the others.

    A zygote with more libraries than a stage needs forks as quickly; a second one that imports torch again would take
    seconds of the very cores that the first stages run on.
    """
    families: dict[bool, dict[str, None]] = {}
    for preload in preloads:
        heavy = any(module.partition(".")[0] in HEAVY for module in preload)
        families.setdefault(heavy, {}).update(dict.fromkeys(preload))
    return [tuple(modules) for _, modules in sorted(families.items())]
