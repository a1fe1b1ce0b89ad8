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

FAR = "far:"
"""Begins the keys of what is in the store on another machine."""


class Stored:
    """A function whose inputs and outputs are keys."""

    def setup(
        self,
        function: str,
        constants: Mapping[str, Any],
        address: Mapping[str, Any],
        far: Mapping[str, Any],
        bandwidth: float,
    ) -> None:
        """`bandwidth`: bytes per second to the store on another machine, `far`; 0: to the other, without a limit."""
        self._target = build(find(function), constants)
        self._near, self._far = redis.Redis(**address), redis.Redis(**far)
        self._bandwidth = bandwidth

    def __call__(self, call: Mapping[str, Any]) -> Any:
        """`call`: `prefix` for new keys, and `inputs`: key, list of keys, or `{"value": ...}`. Gives key or keys."""
        inputs = [self._fetch(source) for source in call["inputs"]]
        result = self._target.call(*inputs, **self._target.constants)
        where = FAR if self._bandwidth else ""
        names = (f"{where}{call['prefix']}/{number}" for number in itertools.count())
        if isinstance(result, Iterable) and not isinstance(result, np.ndarray):
            return [self._put(next(names), item) for item in list(result)]  # complete before anything is sent
        return self._put(next(names), result)

    def _fetch(self, source: Any) -> Any:
        if isinstance(source, Mapping):
            return source["value"]
        if isinstance(source, list):
            return [self._fetch(item) for item in source]
        content = (self._far if source.startswith(FAR) else self._near).get(source)
        if content is None:
            raise KeyError(f"{source} is not in the store")
        return np.frombuffer(content, np.uint8)

    def _put(self, key: str, array: np.ndarray[Any, Any]) -> str:
        start = time.monotonic()
        (self._far if self._bandwidth else self._near).set(key, memoryview(array))
        if self._bandwidth:
            time.sleep(max(0.0, start + array.nbytes / self._bandwidth - time.monotonic()))
        return key
