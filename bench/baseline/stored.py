"""Inside a container of the baselines: inputs out of the store, the function, outputs into the store, in turn.

Egress to a store on another machine is limited as the container's share of a core says; while it sends, the container
does nothing else. That is how control-flow systems run functions that know nothing of each other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import redis

from dataflower.container.target import build, find


class Stored:
    """A function whose inputs and outputs are keys."""

    def setup(self, function: str, constants: Mapping[str, Any], address: Mapping[str, Any], bandwidth: float) -> None:
        """`bandwidth`: bytes per second to the store; 0: it is on this machine, and there is no limit."""
        self._target = build(find(function), constants)
        self._store = redis.Redis(**address)
        self._bandwidth = bandwidth

    def __call__(self, call: Mapping[str, Any]) -> Any:
        """`call`: `prefix` for new keys, and `inputs`: key, list of keys, or `{"value": ...}`. Gives key or keys."""
        inputs = [self._fetch(source) for source in call["inputs"]]
        result = self._target.call(*inputs, **self._target.constants)
        names = (f"{call['prefix']}/{number}" for number in itertools.count())
        if isinstance(result, Iterable) and not isinstance(result, np.ndarray):
            return [self._put(next(names), item) for item in list(result)]  # complete before anything is sent
        return self._put(next(names), result)

    def _fetch(self, source: Any) -> Any:
        if isinstance(source, Mapping):
            return source["value"]
        if isinstance(source, list):
            return [self._fetch(item) for item in source]
        content = self._store.get(source)
        if content is None:
            raise KeyError(f"{source} is not in the store")
        return np.frombuffer(content, np.uint8)

    def _put(self, key: str, array: np.ndarray[Any, Any]) -> str:
        start = time.monotonic()
        self._store.set(key, memoryview(array))
        if self._bandwidth:
            time.sleep(max(0.0, start + array.nbytes / self._bandwidth - time.monotonic()))
        return key
