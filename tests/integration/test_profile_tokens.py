"""`dataflower profile` of language models in real containers: prompts and steps apart, and a plan from that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataflower.cli.workflows import loader
from dataflower.clock import SystemClock
from dataflower.config.compose import compose
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.loadgen.profiling.measure import Effort
from dataflower.loadgen.profiling.tokens import measure_tokens
from dataflower.planner import parse_measured, parse_plan
from dataflower.planner.measured import TokensProfile
from dataflower.planner.token_fit import cost_of

ROOT = Path(__file__).parents[2]
FUNCTIONS = """
import tiny

from dataflower import Json, Stream, function
from dataflower.llm.params import SamplingParams


@function(outputs={"deltas": Stream(Json())})
class Tell:
    def setup(self, max_sequences: int = 4, step_tokens: int = 128):
        self.runner = tiny.runner(
            "llama", blocks=400, sequences=max_sequences, step_tokens=step_tokens, context=400
        )

    def __call__(self, tokens: int):
        for i in range(2):
            params = SamplingParams(max_tokens=6, ignore_eos=True)
            for output in self.runner.stream(tiny.prompt(i, tokens), params):
                yield {"token": output.token}

    def close(self):
        self.runner.close()
"""
WORKFLOW = """\
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: tell}
slo: {ttft_ms: 20000, tpot_ms: 5000, percentile: 95}
inputs: {tokens: {type: int, default: 20}}
stages:
  tell: {function: "telling:Tell", inputs: {tokens: inputs.tokens}, isolation: process, preload: [tiny]}
outputs: {deltas: tell.deltas}
"""


def call(folder: Path, *args: str) -> str:
    path = os.pathsep.join([os.environ.get("PYTHONPATH", str(ROOT)), str(ROOT / "tests")])
    env = {**os.environ, "XDG_STATE_HOME": str(folder), "NO_COLOR": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "dataflower.cli", *args]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(tokens: TokensProfile | None) -> TokensProfile:
    """What any profile of tokens has to have."""
    assert tokens is not None
    assert all(point.duration_ms > 0 and point.runs >= 3 for point in (*tokens.prefill, *tokens.decode))
    in_company = len(os.sched_getaffinity(0)) > 1
    points = (*tokens.prefill, *tokens.decode)
    assert [p.busy_ms is not None and p.busy_ms >= p.duration_ms for p in points] == [in_company] * len(points)
    cost = cost_of(tokens, high=True, busy=True)
    assert cost.prompt_s > 0
    assert cost.most == tokens.sequences
    return tokens


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_prompts_and_steps_are_measured_apart_and_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "telling.py").write_text(FUNCTIONS)
    (tmp_path / "tell.yaml").write_text(WORKFLOW)
    effort = ("--repeat", "1", "--seconds", "0.2")
    monkeypatch.setenv("DATAFLOWER_CACHE", str(tmp_path / "cache"))
    shown = call(tmp_path, "profile", "tell.yaml", *effort)
    assert "prompt of 64" in shown
    stage = parse_measured((tmp_path / "profiles/tell.yaml").read_text(), "p").stages["tell"]
    tokens = check(stage.tokens)
    assert (tokens.sequences, tokens.step_tokens, tokens.context, tokens.generations) == (4, 128, 400, 2.0)
    assert (tokens.prompt.mean, tokens.output.high) == (20.0, 6.0)
    assert tokens.takes == ["max_sequences", "step_tokens"]
    assert {point.batch for point in tokens.decode} == {1, 2, 4}
    assert max(point.tokens for point in tokens.prefill) < 400

    plan = parse_plan(call(tmp_path, "plan", "tell.yaml", "--rate", "0.1", "-o", "yaml"), "plan")
    planned = plan.stages["tell"].tokens
    assert planned is not None
    assert planned.params == {"max_sequences": planned.sequences, "step_tokens": planned.step_tokens}


@pytest.mark.models
@pytest.mark.slow
async def test_a_real_model_is_measured() -> None:
    config = HostConfig(code_path=(str(ROOT),), cpus=2)
    text = (ROOT / "workflows/chat.yaml").read_text().replace("max_tokens: 512", "max_sequences: 2")
    stage = loader(compose({"code_path": [ROOT]}).config)(text, "chat.yaml").stages["complete"]
    async with Runtime(config) as host:
        tokens = await measure_tokens(host, stage, [(40, 6), (20, 2)], 1.0, Effort((1,), 0.1), clock=SystemClock())
    assert tokens.takes == ["max_sequences", "step_tokens", "ttft_ms", "tpot_ms"]
    assert (tokens.sequences, tokens.step_tokens, tokens.generations) == (2, 512, 2.0)
    assert (tokens.prompt.mean, tokens.output.high) == (30.0, 6.0)
    by_size = {point.tokens: point.duration_ms for point in tokens.prefill}
    assert by_size[512] > by_size[16]
    assert cost_of(tokens).prompt(512) > 0
