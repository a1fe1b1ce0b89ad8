"""'Did you mean': the nearest of the names that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 12
"""That a hint lists."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if none is close."""
    candidates = {word.lower(): word for word in known}
    found = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.6)
    return candidates[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, none: str = "") -> str:
    """A hint: the nearest name; else all that are known, or the first of them.

    `otherwise`: said instead where they are many. `none`: said where there are none (empty: as `otherwise`).
    """
    names = list(dict.fromkeys(known))
    found = nearest(name, names)
    if found is not None:
        return f"did you mean {found!r}?"
    if not names:
        return none or otherwise
    if len(names) <= MOST_NAMES:
        return f"known: {', '.join(names)}"
    return otherwise or f"known: {', '.join(names[:MOST_NAMES])}, ... ({len(names)} in all)"
