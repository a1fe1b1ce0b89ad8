"""The parts of profiling that need no container: when a median is steady, what a digest covers, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.loadgen.profiling.cache import Cache
from dataflower.loadgen.profiling.digest import file_digests, likeness, sources, stage_digest
from dataflower.loadgen.profiling.explore import summed
from dataflower.loadgen.profiling.measure import Effort, alone, signature, sizes_of
from dataflower.loadgen.profiling.memory import peak_bytes
from dataflower.loadgen.profiling.steady import interval, is_steady, summary
from dataflower.spec.function import Port
from dataflower.spec.workflow import INPUTS, Batch, Edge, Fanout, Input, PortRef, Resources, Stage, Workflow


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(3, (1, 3)), (5, (1, 5)), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (20, (6, 15)), (100, (40, 61))],
)
def test_the_interval_of_a_median_is_that_of_the_tables(count: int, ranks: tuple[int, int]) -> None:
    """Ranks of the sign test at 95 %; with fewer than six samples there is no such interval."""
    assert interval([float(i) for i in range(1, count + 1)]) == ranks


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        low, high = interval(rng.exponential(1.0, 15).tolist())
        inside += low <= np.log(2) <= high
    assert inside / 2000 >= 0.95


def test_steady_is_a_narrow_interval() -> None:
    assert not is_steady([1.0] * 4)
    assert is_steady([1.0] * 5)
    assert is_steady([1.0, 1.01, 0.99, 1.02, 1.0, 0.98])
    assert not is_steady([1.0, 2.0] * 10)


def test_an_outlier_moves_neither_the_median_nor_the_spread() -> None:
    calm = summary([10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0, 10.1, 9.9])
    loud = summary([10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0, 10.1, 99.0])
    assert loud.median_s == pytest.approx(calm.median_s, abs=0.1)
    assert loud.std_s < 0.3
    assert (calm.runs, calm.high_s) == (9, 10.2)


def test_a_digest_follows_the_code_the_params_and_the_machine(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "main.py").write_text("import json\nfrom pkg import helper\nfrom .deep import x\n")
    (tmp_path / "pkg" / "helper.py").write_text("a = 1\n")
    (tmp_path / "pkg" / "deep.py").write_text("x = 1\n")
    (tmp_path / "pkg" / "other.py").write_text("y = 1\n")
    assert set(sources("pkg.main", [tmp_path])) == {"pkg", "pkg.main", "pkg.helper", "pkg.deep"}
    stage = Stage("s", "pkg.main:f", params={"n": 1})
    first = stage_digest(stage, [tmp_path], "here")
    assert first == stage_digest(stage, [tmp_path], "here")
    (tmp_path / "pkg" / "other.py").write_text("y = 2\n")
    assert first == stage_digest(stage, [tmp_path], "here")
    others = {
        stage_digest(replace(stage, params={"n": 2}), [tmp_path], "here"),
        stage_digest(replace(stage, resources=Resources(cpu=2)), [tmp_path], "here"),
        stage_digest(replace(stage, function="pkg.main:g"), [tmp_path], "here"),
        stage_digest(stage, [tmp_path], "there"),
    }
    (tmp_path / "pkg" / "deep.py").write_text("x = 2\n")
    others.add(stage_digest(stage, [tmp_path], "here"))
    assert len(others | {first}) == 6


def test_inputs_of_about_the_same_size_are_alike() -> None:
    frame = {"frame": np.zeros((480, 640, 3), np.uint8), "at": {"index": 1}}
    other = {"frame": np.ones((480, 640, 3), np.uint8), "at": {"index": 7}}
    assert likeness([frame]) == likeness([other, frame])
    assert likeness([frame]) != likeness([{**frame, "frame": np.zeros((240, 320, 3), np.uint8)}])
    assert signature(frame) == signature(other) != signature({"frame": frame["frame"][:10], "at": {}})


def test_what_is_kept_holds_as_long_as_its_files_do(tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    cache = Cache(tmp_path / "kept")
    assert cache.get("k") is None
    cache.put("k", {"ms": 1.5}, file_digests([str(weights)]))
    assert cache.get("k") == {"ms": 1.5}
    weights.write_bytes(b"two")
    assert cache.get("k") is None
    weights.unlink()
    assert cache.get("k") is None
    cache.put("n", {"ms": 2}, {})
    assert cache.get("n") == {"ms": 2}
    (tmp_path / "kept" / "n.json").write_text("{broken")
    assert cache.get("n") is None
    assert Cache(None).get("n") is None


def test_sizes_stay_within_what_the_stage_allows() -> None:
    effort = Effort((1, 2, 4, 8, 16))
    assert sizes_of(Stage("s", "m:f"), effort) == (1,)
    assert sizes_of(Stage("s", "m:f", batch=Batch(max_size=6)), effort) == (1, 2, 4, 6)
    assert sizes_of(Stage("s", "m:f", batch=Batch(max_size=32)), effort) == (1, 2, 4, 8, 16, 32)


def test_a_stage_alone_takes_what_was_recorded() -> None:
    stage = Stage(
        "inner/s",
        "m:f",
        inputs=(Input("xs", (Edge(PortRef("up", "x"), Fanout.GATHER),)),),
        input_ports=(Port("xs", stream=True), Port("k", optional=True, default=3)),
        outputs=(Port("out"),),
        timeout_s=5.0,
    )
    workflow = alone(stage, {"xs": [1, 2]}, "w", 4, 50.0)
    (only,) = workflow.stages.values()
    assert (only.name, only.timeout_s, only.scaling.min_replicas) == ("inner-s", 5.0, 1)
    assert [(p.name, p.stream) for p in workflow.inputs] == [("xs", True)]
    assert only.inputs[0].edges == (Edge(PortRef(INPUTS, "xs")),)
    assert [o.name for o in workflow.outputs] == ["out"]


def task(stage: str, tag: tuple[int, ...] = (), items: int = 0, attempt: int = 1) -> TaskTrace:
    return TaskTrace(stage, tag, attempt, 1.0, dispatched=1.0, started=1.1, ended=1.2, sent=1.3, items=items)


def test_runs_are_counted_by_stage_and_fan_out(tmp_path: Path) -> None:
    workflow = Workflow(
        "w",
        {
            "split": Stage("split", "m:f", outputs=(Port("x", stream=True),)),
            "each": Stage(
                "each", "m:f", inputs=(Input("x", (Edge(PortRef("split", "x"), Fanout.EACH),)),), outputs=(Port("out"),)
            ),
            "sum": Stage("sum", "m:f", inputs=(Input("xs", (Edge(PortRef("each", "out"), Fanout.GATHER),)),)),
        },
    )
    first = [task("split", items=3), *(task("each", (i,)) for i in range(3)), task("sum")]
    second = [
        task("split", items=5),
        *(task("each", (i,)) for i in range(5)),
        task("each", (0,), attempt=2),
        task("sum"),
    ]
    found = summed(workflow, [InvocationTrace("a", "w@1", 0.0, tasks=t) for t in (first, second)], tmp_path)
    assert found.tasks == {"split": (1.0, 1), "each": (4.0, 5), "sum": (1.0, 1)}
    assert found.items == {"split": 4.0}


def test_memory_of_this_process_is_more_than_nothing() -> None:
    import os

    found = peak_bytes(os.getpid())
    assert found is not None
    assert found > 1 << 20
    assert peak_bytes(2**22 + 1) is None
