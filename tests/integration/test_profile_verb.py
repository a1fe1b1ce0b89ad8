"""`dataflower profile` on real containers: durations by batch size, fan-outs, memory, and nothing measured twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataflower.planner import parse_measured, parse_plan

FUNCTIONS = """
import time
from pathlib import Path

import numpy as np

from dataflower import Stream, Tensor, function


@function(outputs={"x": Stream(Tensor("FP32", ["N"]))})
def cut(count: int, size: int = 1000):
    for i in range(count):
        yield np.full(size, i, np.float32)


@function(batch=True)
class Model:
    def setup(self, weights: str = "") -> None:
        self.scale = float(Path(weights).read_text())
        self.block = np.ones(4_000_000)

    def __call__(self, x):
        time.sleep(0.01 + 0.002 * len(x))
        return [float(one.sum()) * self.scale for one in x]


def add(sums: Stream) -> float:
    return float(sum(sums))


def rare(total: float) -> str:
    return "large"
"""
WORKFLOW = """\
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: sums}
slo: {e2e_ms: 900, percentile: 99}
inputs: {count: {type: int, default: 6}}
stages:
  cut: {function: "model:cut", inputs: {count: inputs.count}}
  model:
    function: "model:Model"
    inputs: {x: {each: cut.x}}
    params: {weights: WEIGHTS}
    batch: {max_size: 4}
  add: {function: "model:add", inputs: {sums: {gather: model.out}}}
  route:
    inputs: {total: add.out}
    switch: {large: total > 1e12, small: default}
  rare: {function: "model:rare", when: route.large, inputs: {total: add.out}}
outputs: {total: add.out, rare: rare.out}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(FUNCTIONS)
    weights = tmp_path / "weights.txt"
    weights.write_text("2.0")
    (tmp_path / "sums.yaml").write_text(WORKFLOW.replace("WEIGHTS", str(weights)))
    return tmp_path


def call(folder: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XDG_STATE_HOME": str(folder), "DATAFLOWER_CACHE": str(folder / "cache"), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "dataflower.cli", *args]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_a_workflow_is_measured_once_and_planned(folder: Path) -> None:
    effort = ("--seconds", "0.5", "--repeat", "1")
    first = call(folder, "profile", "sums.yaml", *effort)
    document = parse_measured((folder / "profiles" / "sums.yaml").read_text(), "p")
    model = document.stages["model"]
    assert [p.batch for p in model.points] == [1, 2, 4]
    assert all(p.duration_ms > 10 for p in model.points)
    in_company = len(os.sched_getaffinity(0)) > 1  # a core for the container and one for its company
    for points in (model.points, document.stages["add"].points):
        assert [p.busy_ms is not None and p.busy_ms >= p.duration_ms for p in points] == [in_company] * len(points)
    assert all(p.memory_bytes is not None and p.memory_bytes > 30_000_000 for p in model.points)
    assert (model.tasks, model.most, document.items["cut"]) == (6.0, 6, 6.0)
    assert (model.how, document.stages["add"].how) == ("alone", "alone")
    assert document.stages["rare"].points == []
    assert "rare did not run" in first.stderr
    assert model.start_ms is not None

    again = call(folder, "profile", "sums.yaml", *effort)
    assert again.stdout.count("from cache") >= 3
    (folder / "weights.txt").write_text("3.0")  # the function reads it, so it is measured again; the others are not
    third = call(folder, "profile", "sums.yaml", *effort)
    cached = {line.split()[0]: "from cache" in line for line in third.stdout.splitlines() if line[:1].strip()}
    assert (cached["cut"], cached["model"], cached["add"]) == (True, False, True)

    refused = call(folder, "plan", "sums.yaml", "--rate", "2", code=1)
    assert "stage 'rare' never ran when it was profiled" in refused.stderr


def test_what_was_measured_is_planned(folder: Path) -> None:
    text = (folder / "sums.yaml").read_text()
    text = "\n".join(line for line in text.splitlines() if "rare" not in line).replace("{total: add.out, ", "{")
    (folder / "sums.yaml").write_text(text + "\noutputs: {total: add.out}\n")
    call(folder, "profile", "sums.yaml", "count=4", "--seconds", "0.4", "--repeat", "1", "--out", "p.yaml")
    done = call(folder, "plan", "sums.yaml", "--rate", "2", "--profiles", "p.yaml", "-o", "yaml", "--slo", "2s")
    plan = parse_plan(done.stdout, "plan")
    assert plan.stages["model"].rate_per_s == 8.0
    assert sum(s.budget_ms for s in plan.stages.values()) <= 2000 * (1 + 1e-6)


def test_a_function_that_fails_is_named(folder: Path) -> None:
    (folder / "weights.txt").write_text("not a number")
    done = call(folder, "profile", "sums.yaml", code=1)
    assert "model" in done.stderr
    assert "could not convert string to float" in done.stderr
    assert not (folder / "profiles").exists()
