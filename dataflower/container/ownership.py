"""Whether anything but a dict of ours can still reach an array that a function has handed out.

A module of its own because it must not be compiled: it counts references, and compiled callers hold others.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np


def is_sole_owner(ports: Mapping[str, Any], name: str) -> bool:
    """Whether the memory of `ports[name]` can be reached through `ports` alone. The caller has dropped its own names.

    Then nobody can write there any more. True only for a plain numpy array that made its memory itself (no view of
    something else), of which there is one reference and no weak one: views, memoryviews, ctypes and DLPack objects,
    torch tensors and buffers of other libraries count as references, and so do the locals of a generator that waits.
    """
    found = ports[name]
    if type(found) is not np.ndarray or found.base is not None or not found.flags.owndata:
        return False
    if weakref.getweakrefcount(found):
        return False
    del found
    return _references(ports, name) == _when_sole()


def _references(ports: Mapping[str, Any], name: str) -> int:
    return sys.getrefcount(ports[name])


@functools.cache
def _when_sole() -> int:
    """What `_references` gives here for an array that only the mapping holds; -1 where that can't be told.

    (Without a global lock counts are spread over threads, and a low one proves nothing.)
    """
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return -1
    return _references({"": np.empty(1)}, "")
