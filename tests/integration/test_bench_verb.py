"""`dataflower bench` as a user has it: a file, a server of its own, a verdict as an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FUNCTIONS = """
import time
from collections.abc import Iterator
from dataflower import Stream, Text, function


def nap(text: str, seconds: float = 0.02) -> str:
    time.sleep(seconds)
    return text


@function(outputs={"word": Stream(Text())})
def words(text: str) -> Iterator[str]:
    for word in text.split():
        time.sleep(0.01)
        yield word
"""
NAP = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: nap}
slo: {e2e_ms: 8000, percentile: 90}
inputs: {text: {type: string, default: hello}}
stages:
  first: {function: "stock:nap", inputs: {text: inputs.text}, scaling: {min_replicas: 1}}
  second: {function: "stock:nap", inputs: {text: first.out}}
outputs: {out: second.out}
"""
PLAN = """
apiVersion: dataflower/v1
kind: Plan
workflow: nap
rate_per_s: 10
slo_ms: 8000
percentile: 90
arrivals: poisson
billing: integer
cost_per_hour: 2.0
cost_per_1000: 0.06
worst_ms: 400
stages:
""" + "".join(
    f"""
  {name}:
    budget_ms: 4000
    rate_per_s: 10
    groups:
      - {{device: cpu, batch: 1, machines: 1, replicas: 1, rate_per_s: 10, duration_ms: 40, worst_ms: 200,
         timeout_ms: 0}}
"""
    for name in ("first", "second")
)
TRACE = "\n".join(["time,said", *(f"{i / 8},w{i % 2}" for i in range(20))])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stock.py").write_text(FUNCTIONS)
    (tmp_path / "nap.yaml").write_text(NAP)
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "trace.csv").write_text(TRACE)
    (tmp_path / "prices.csv").write_text("hardware,price\ncpu,0.5\n")
    return tmp_path


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dataflower.cli", "bench", *args],
        cwd=folder,
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state"), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bench(folder: Path, *args: str) -> tuple[int, str, str]:
    with start(folder, *args) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_file_is_loaded_on_a_server_of_its_own(folder: Path) -> None:
    files = ("--json", "out/a.json", "--csv", "out/a.csv", "--html", "out/a.html")
    more = ("--prices", "prices.csv", "--budget", "first=5s", "--warmup", "0.5s", "--plan", "plan.yaml")
    code, out, err = bench(folder, "nap.yaml", "text=hi", "--duration", "3s", *more, *files)
    report = json.loads((folder / "out/a.json").read_text())
    assert report["counts"]["ok"] == report["counts"]["measured"] > 10, err
    assert report["settings"]["rate"] == 10  # the plan's
    assert report["verdict"]["outcome"] in ("met", "unproven"), err  # a busy machine may keep the generator waiting
    assert code == (0 if report["verdict"]["outcome"] == "met" else 1)
    assert [row["stage"] for row in report["stages"]] == ["first", "second"]
    assert report["stages"][0]["parts_ms"]["compute"] >= 20
    assert report["stages"][0]["attainment"] == 1.0
    assert [row["budget_ms"] for row in report["stages"]] == [5000, 4000]
    assert report["cost"]["per_1000_good"] > 0
    assert report["settings"]["seed"] == 0
    assert "seed 0" in out
    assert "overhead" in out
    assert "good/s" in out
    assert "wrote out/a.json, out/a.csv, out/a.html" in err
    assert "<svg" in (folder / "out/a.html").read_text()
    assert (folder / "out/a.csv").read_text().count("\n") == report["counts"]["measured"] + 1
    code, out, err = bench(folder, "--compare", "out/a.json", "out/a.json", "-o", "json")
    assert code == 0
    assert {row["change"] for row in json.loads(out)["differences"]} == {"no clear difference"}


def test_a_trace_brings_arrivals_and_inputs_and_a_miss_is_3(folder: Path) -> None:
    given = ("--trace", "trace.csv", "--trace-input", "text=said", "--speed", "2", "--warmup", "0", "--slo", "e2e=1")
    code, out, err = bench(folder, "nap.yaml", *given, "-o", "json")
    assert code == 3, err
    report = json.loads(out)
    assert report["counts"]["ok"] == 20
    assert report["requests"]["scheduled_s"][1] == pytest.approx(1 / 16)
    assert report["settings"]["arrivals"].endswith("at 2x")
    assert report["command"].startswith("dataflower bench nap.yaml --trace trace.csv --trace-input text=said")
    assert report["settings"]["input_sets"] == 2
    assert report["verdict"]["outcome"] == "missed"


def test_ctrl_c_reports_what_was_measured_and_leaves_nothing(folder: Path) -> None:
    with start(folder, "nap.yaml", "--rate", "20", "--duration", "10m", "--warmup", "0", "--json", "a.json") as process:
        assert process.stderr is not None
        while "load:" not in (line := process.stderr.readline()):
            assert line, "it ended early"
        children = _children(process.pid)
        while "sent" not in (line := process.stderr.readline()):
            assert line, "it ended early"
        children |= _children(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    report = json.loads((folder / "a.json").read_text())
    assert report["counts"]["ok"] > 0
    assert "stopped before its end" in report["verdict"]["reasons"][0]
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def _children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
