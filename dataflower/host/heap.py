"""Python's garbage collector in a process that is a host, and little else."""

from __future__ import annotations

import gc

_NEW_OBJECTS = 10_000
"""Objects made, and not gone, before the collector looks at them; Python's own number is 700."""


def spare_the_collector() -> None:
    """Let the collector pass over what is there now for good, and look at the rest less often.

    For processes that we own whole, once they are up. What an invocation leaves behind holds no cycles, so every look
    is in vain; one at everything that the host's libraries have made stops it for some ten milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 20, 50)
