"""A served language model whose plan follows the traffic: more replicas of the same containers, no answer changed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from replan_for_tests import until_decided
from typer.testing import CliRunner

from dataflower.cli.group import app
from dataflower.cli.served import serve_apart
from dataflower.errors import Code, DataflowerError
from dataflower.gateway.client import Client
from dataflower.host.api import ReplanOutcome
from dataflower.planner import parse_plan

TESTS = Path(__file__).parents[1]
FUNCTIONS = """
import os
import tiny

from dataflower import Json, Stream, function
from dataflower.llm.params import SamplingParams


@function(outputs={"deltas": Stream(Json())})
class Tell:
    def setup(self, max_sequences: int = 16, step_tokens: int = 512, ttft_ms: float | None = None):
        self.given = [max_sequences, step_tokens, ttft_ms]
        self.runner = tiny.runner("llama", blocks=200, sequences=max_sequences, step_tokens=step_tokens, context=200)

    def __call__(self, seed: int):
        params = SamplingParams(max_tokens=6, ignore_eos=True)
        with self.runner.stream(tiny.prompt(seed, 12), params) as outputs:
            for output in outputs:
                yield {"token": output.token, "pid": os.getpid(), "given": self.given}

    def close(self):
        self.runner.close()
"""
WORKFLOW = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: tell}
slo: {ttft_ms: 3000, tpot_ms: 400, percentile: 90}
inputs: {seed: int}
stages:
  tell:
    function: "retelling:Tell"
    inputs: {seed: inputs.seed}
    isolation: process
    preload: [tiny]
    resources: {cpu: 0.25}
outputs: {deltas: tell.deltas}
"""
PROFILE = """
apiVersion: dataflower/v1
kind: Profile
workflow: tell
device: cpu
stages:
  tell:
    points: [{batch: 1, duration_ms: 2000.0}]
    tokens:
      sequences: 4
      step_tokens: 128
      context: 200
      takes: [max_sequences, step_tokens, ttft_ms]
      prompt: {mean: 12, high: 12}
      output: {mean: 6, high: 6}
      prefill: [{tokens: 16, duration_ms: 300.0}, {tokens: 128, duration_ms: 900.0}]
      decode:
        - {batch: 1, context: 64, duration_ms: 180.0}
        - {batch: 4, context: 64, duration_ms: 200.0}
        - {batch: 1, context: 128, duration_ms: 181.0}
"""
RATE = 4.0


def call(*args: str) -> str:
    result = CliRunner().invoke(app, [*args])
    assert result.exit_code == 0, result.output
    return result.output


class Traffic:
    """Calls at a constant rate from a few threads, until it is told to stop; what came back of each seed."""

    def __init__(self, client: Client) -> None:
        self.said: dict[int, set[tuple[int, ...]]] = {}
        self.pids: set[int] = set()
        self.given: list[object] = []
        self.wrong: list[str] = []
        self._client = client
        self._stop = threading.Event()
        self._begun = time.monotonic()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self, n: int) -> None:
        due = self._begun + n / RATE
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            try:
                deltas = self._client.invoke("tell", seed=n)["deltas"]
            except DataflowerError as error:
                if error.code is not Code.RESOURCE_EXHAUSTED:
                    self.wrong.append(str(error))
            else:
                self.said.setdefault(n, set()).add(tuple(delta["token"] for delta in deltas))
                self.pids |= {delta["pid"] for delta in deltas}
                self.given += [delta["given"] for delta in deltas]
            due += len(self._threads) / RATE

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_plan_of_a_language_model_follows_the_traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("DATAFLOWER_REPLAN_SHORT_S", "2s")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", str(TESTS.parent)), str(TESTS)]))
    for name, text in (("retelling.py", FUNCTIONS), ("tell.yaml", WORKFLOW), ("profile.yaml", PROFILE)):
        Path(name).write_text(text)
    call("plan", "tell.yaml", "--rate", "0.5", "--profiles", "profile.yaml", "--out", "plan.yaml", "-q")
    before = parse_plan(Path("plan.yaml").read_text(), "plan.yaml")
    tokens = before.stages["tell"].tokens
    assert tokens is not None
    assert sum(group.replicas for group in before.stages["tell"].groups) == 1
    with serve_apart(("--code-path", str(tmp_path))) as served, Client(served.address) as client:
        monkeypatch.setenv("DATAFLOWER_SERVER", served.address)
        call("apply", "tell.yaml", "--plan", "plan.yaml", "--replan", "on")
        client.invoke("tell", seed=0)
        traffic = Traffic(client)
        try:
            live = until_decided(client, "tell")
            kept = sum(group.replicas for group in parse_plan(live.plan, "plan").stages["tell"].groups)
            end = time.monotonic() + 60
            while len(traffic.pids) < 2 and time.monotonic() < end:
                time.sleep(0.1)  # the containers of the new plan start
        finally:
            traffic.stop()
    assert live.replanning is not None
    assert live.replanning.last is not None
    assert live.replanning.last.outcome is ReplanOutcome.APPLIED, live.replanning.last.note
    assert live.version == 1  # the same containers, and more of them
    assert kept > 1
    assert 1 < len(traffic.pids) <= kept  # answers are short here, so not everybody had to help
    assert not traffic.wrong
    assert {len(answers) for answers in traffic.said.values()} == {1}, "an answer depends on who gave it"
    limits = [tokens.params["max_sequences"], tokens.params["step_tokens"], tokens.params["ttft_ms"]]
    assert traffic.given
    assert all(given == limits for given in traffic.given)
