"""Starts of containers, as metrics count them."""

from __future__ import annotations

from dataflower.gateway.metrics import Metrics
from dataflower.host.api import ContainerStart
from dataflower.testing.fake_host import FakeHost
from dataflower.wire import StartKind, StartPhase


def test_a_phase_that_was_told_in_pieces_counts_once_for_each_start() -> None:
    metrics = Metrics(FakeHost())
    pieces = [(StartKind.MODEL, 0.25), (StartKind.WEIGHTS, 1.0), (StartKind.MODEL, 0.5), (StartKind.WARM_UP, 0.125)]
    told = tuple(StartPhase(kind, "smollm2", seconds) for kind, seconds in pieces)
    metrics.started(ContainerStart("chat", "complete", 2.0, 0.5, 2.0, told))
    families = {family.name: family for family in metrics.families()}
    samples = families["dataflower_container_start_seconds"].samples
    seen = {
        end: {s.labels["phase"]: s.value for s in samples if s.name.endswith(f"_{end}")} for end in ("count", "sum")
    }
    assert set(seen["count"].values()) == {1.0}
    assert seen["sum"] == {"spawn": 2.0, "import": 0.5, "setup": 2.0, "model": 0.75, "weights": 1.0, "warm-up": 0.125}
