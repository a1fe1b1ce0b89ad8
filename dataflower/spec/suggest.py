"""'Did you mean': the nearest of the names that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if none is close."""
    candidates = {word.lower(): word for word in known}
    found = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.6)
    return candidates[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint: the nearest name; else the short list of all; else `otherwise`."""
    names = list(dict.fromkeys(known))
    found = nearest(name, names)
    if found is not None:
        return f"did you mean {found!r}?"
    if names and len(names) <= 12:
        return f"known: {', '.join(names)}"
    return otherwise
