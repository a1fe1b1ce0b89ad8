"""`dataflower plan` says how long a first container would wait for its weights, and whether anybody has that time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataflower.cli.group import app
from dataflower.planner import parse_plan
from dataflower.planner.again import plan_again

FUNCTIONS = """
class Tell:
    def setup(self, model: str) -> None:
        self.model = model

    def __call__(self, request: dict) -> dict:
        return request


def tell(request: dict) -> dict:
    return request
"""
CHAT = """\
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: chat}
slo: {e2e_ms: 1000}
inputs: {request: json}
stages:
  tell: {function: "telling:Tell", inputs: {request: inputs.request}, model: MODEL}
  other: {function: "telling:tell", inputs: {request: tell.out}}
outputs: {out: other.out}
"""
PROFILE = """\
apiVersion: dataflower/v1
kind: Profile
workflow: chat
device: cpu
stages:
  tell: {points: [{batch: 1, duration_ms: 20.0}]}
  other: {points: [{batch: 1, duration_ms: 20.0}]}
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("DATAFLOWER_MODELS_DIR", str(tmp_path / "models"))
    Path("telling.py").write_text(FUNCTIONS)
    Path("profiles").mkdir()
    Path("profiles/chat.yaml").write_text(PROFILE)
    Path("models").mkdir()
    head = json.dumps({"x": {"dtype": "U8", "shape": [1_000_000], "data_offsets": [0, 1_000_000]}}).encode()
    Path("tiny").mkdir()
    Path("tiny/model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(1_000_000))


def planned(model: str, *args: str) -> str:
    Path("chat.yaml").write_text(CHAT.replace("MODEL", model))
    result = CliRunner().invoke(app, ["plan", "chat.yaml", "--rate", "4", *args])
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("rate", "load_ms", "said", "prewarm"),
    [(1e8, 10.0, "in time", False), (1e6, 1000.0, "misses the budget", True)],
)
def test_a_load_takes_its_bytes_over_the_measured_bandwidth(
    rate: float, load_ms: float, said: str, *, prewarm: bool
) -> None:
    Path("models/.rates.json").write_text(json.dumps({"disk": rate}))
    shown = planned("./tiny")
    assert f"tell ./tiny 1 disk {load_ms:.4g}" in shown
    assert said in shown
    assert ("note: who waits for the weights of tell is late" in shown) == prewarm
    document = parse_plan(planned("./tiny", "-o", "json"), "plan.json")
    weights = document.stages["tell"].weights
    assert weights is not None
    assert (weights.model, weights.tier, weights.prewarm) == ("./tiny", "disk", prewarm)
    assert weights.load_ms == pytest.approx(load_ms, rel=0.01)
    assert document.stages["other"].weights is None
    again = plan_again(document, 8.0, lambda _: "").document
    assert again is not None
    assert again.stages["tell"].weights == weights


def test_what_was_not_measured_is_not_guessed() -> None:
    shown = planned("./tiny")
    assert "tell ./tiny 1 disk not measured misses the budget" in shown


def test_what_has_to_be_fetched_first_and_what_is_not_there() -> None:
    shown = planned("https://models.invalid/far/away")
    assert "https://models.invalid/far/away ? remote not measured" in shown
    shown = planned("nowhere")
    assert "nowhere ? missing not measured" in shown
    assert "there is no model 'nowhere' on this machine" in shown
