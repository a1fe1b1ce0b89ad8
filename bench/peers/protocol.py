"""How a bench speaks with a rival: one JSON object a line, requests on its stdin, answers on its stdout.

A rival first says `{"ready": true, "versions": {...}}` or `{"error": "why not"}`. A request is `{"do": NAME, ...}`; the
answer is `{"samples": [seconds, ...]}`, `{"rate": per second}` or `{"error": text}`. The end of stdin is the order to
leave. What libraries print goes to stderr.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Answer = Mapping[str, Any]


def serve(packages: Sequence[str], **measures: Callable[..., Answer]) -> None:
    """Answer requests until stdin ends. `measures`: by the name in `do`, called with the other fields."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print where they like
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({"ready": True, "versions": versions}), file=out)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = measures[request.pop("do")](**request)
        except Exception as error:  # a rival that fails is a figure that is missing, not a bench that fails
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out)


def timed(call: Callable[[], Any], rounds: int, warm: int) -> Answer:
    """Seconds of each of `rounds` calls, after `warm` that don't count."""
    for _ in range(warm):
        call()
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return {"samples": samples}
