"""In which form the modules on the way of a token are here."""

from __future__ import annotations

import importlib.util

PLAIN, COMPILED = "plain", "compiled"


def modules() -> str:
    """COMPILED if they run as machine code (a wheel for a platform, `make native`), else PLAIN. Loads none of them."""
    found = importlib.util.find_spec("dataflower.core.host")
    return PLAIN if found is None or found.origin is None or found.origin.endswith(".py") else COMPILED


def title() -> str:
    """The version, and the form where it is not the usual one."""
    from dataflower import __version__

    return f"dataflower {__version__}" if modules() == PLAIN else f"dataflower {__version__} (compiled)"
