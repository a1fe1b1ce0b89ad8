"""Applications whose plans are tried on this machine: two shipped ones with real weights, two that sleep (`--quick`).

All take batches, so that a plan has something to decide. `workflows/sights.yaml` and `workflows/search.yaml` are the
real ones; the function of the others is below.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.engine import ROOT
from dataflower import function

MAX_BATCH = 8


@dataclass(frozen=True, slots=True)
class Promised:
    """A workflow, and sets of inputs that are typical of it."""

    name: str
    source: str
    inputs: tuple[Mapping[str, Any], ...]
    slo_ms: float

    def within(self, slo_ms: float) -> Promised:
        """The same with another promise."""
        source, count = re.subn(r"\be2e_ms: [0-9.]+", f"e2e_ms: {slo_ms:g}", self.source)
        assert count == 1, f"{self.name}: one e2e_ms is expected, there are {count}"
        return replace(self, source=source, slo_ms=slo_ms)


def real(slo_ms: float = 600.0) -> tuple[Promised, Promised]:
    """Frames of a street clip in words (YOLOv3-tiny, MiniLM), and the review that is nearest to a text (MiniLM)."""
    texts = ("A man is eating food.", "The plot is thin, but the actors are good.", "The phone broke after a week.")
    inputs: dict[str, tuple[Mapping[str, Any], ...]] = {
        "sights": tuple({"frame": number} for number in range(0, 60, 7)),
        "search": tuple({"text": text} for text in texts),
    }
    first, second = (
        Promised(name, (ROOT / "workflows" / f"{name}.yaml").read_text(), own, slo_ms).within(slo_ms)
        for name, own in inputs.items()
    )
    return first, second


def sleeping(slo_ms: float = 400.0) -> tuple[Promised, Promised]:
    """The same shape without weights: a batch takes 20 ms and 5 more for each task."""
    found = []
    for name in ("naps", "dozes"):
        source = f"""
apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: {name}}}
slo: {{e2e_ms: {slo_ms:g}, percentile: 99}}
inputs: {{x: int}}
stages:
  nap: {{function: 'bench.promised:nap', inputs: {{x: inputs.x}}, params: {{once: 0.02, each: 0.005}}, {_ALIKE}}}
  answer: {{function: 'bench.promised:nap', inputs: {{x: nap.out}}, params: {{once: 0.004, each: 0.001}}, {_ALIKE}}}
outputs: {{answer: answer.out}}
"""
        found.append(Promised(name, source, ({"x": 1}, {"x": 2}), slo_ms))
    return found[0], found[1]


_ALIKE = f"batch: {{max_size: {MAX_BATCH}}}, scaling: {{min_replicas: 1, max_replicas: 1}}"


@function(batch=True)
def nap(x: list[int], once: float, each: float) -> list[int]:
    """Sleep as long as a batch takes."""
    time.sleep(once + each * len(x))
    return x
