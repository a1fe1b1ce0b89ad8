"""A server whose plan follows the traffic: from the file of `dataflower plan` to what `status` says, nothing lost."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from replan_for_tests import until_decided
from typer.testing import CliRunner, Result

from dataflower.cli.group import app
from dataflower.cli.served import serve_apart
from dataflower.errors import Code, DataflowerError
from dataflower.gateway.client import Client
from dataflower.host.api import ReplanOutcome
from dataflower.planner import parse_plan

FUNCTIONS = """
import time
from dataflower import function


@function(batch=True)
def size(text: list) -> list:
    time.sleep(0.03)
    return [len(one) for one in text]
"""
WORKFLOW = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: sizes}
slo: {e2e_ms: 900, percentile: 90}
inputs: {text: string}
stages: {size: {function: "sizing:size", inputs: {text: inputs.text}}}
outputs: {out: size.out}
"""
PROFILE = """
apiVersion: dataflower/v1
kind: Profile
workflow: sizes
device: cpu
stages:
  size:
    tasks: 1.0
    most: 1
    points:
      - {batch: 1, duration_ms: 150.0}
      - {batch: 2, duration_ms: 180.0}
      - {batch: 4, duration_ms: 240.0}
"""
RATE = 30.0


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*args])
    assert result.exit_code == code, result.output
    return result


class Traffic:
    """Invocations at a constant rate from a thread, until it is told to stop."""

    def __init__(self, client: Client) -> None:
        self.good = 0
        self.refused = 0
        self.wrong: list[str] = []
        self._client = client
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(10)]
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()

    def _run(self, n: int) -> None:
        due = self._begun + n / RATE
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            try:
                answer = self._client.invoke("sizes", text="four")
                self.good += 1
                if answer != {"out": 4}:
                    self.wrong.append(str(answer))
            except DataflowerError as error:
                if error.code is Code.RESOURCE_EXHAUSTED:
                    self.refused += 1
                else:
                    self.wrong.append(str(error))
            due += len(self._threads) / RATE

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


@pytest.mark.slow
def test_the_plan_of_a_server_follows_the_traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("DATAFLOWER_REPLAN_SHORT_S", "2s")
    for name, text in (("sizing.py", FUNCTIONS), ("sizes.yaml", WORKFLOW), ("profile.yaml", PROFILE)):
        Path(name).write_text(text)
    call("plan", "sizes.yaml", "--rate", "4", "--profiles", "profile.yaml", "--out", "plan.yaml", "-q")
    with serve_apart(("--code-path", str(tmp_path))) as served, Client(served.address) as client:
        monkeypatch.setenv("DATAFLOWER_SERVER", served.address)
        call("apply", "sizes.yaml", "--plan", "plan.yaml")
        assert client.workflow("sizes").replanning is None, "off unless asked for"
        call("apply", "sizes.yaml", "--replan", "dry-run")
        client.invoke("sizes", text="warm")
        traffic = Traffic(client)
        try:
            dry = until_decided(client, "sizes")
            assert dry.replanning is not None
            assert dry.replanning.last is not None
            assert dry.replanning.last.outcome is ReplanOutcome.DRY_RUN
            assert dry.replanning.planned_per_s == 4.0
            assert parse_plan(dry.plan, "plan").rate_per_s == 4.0
            call("apply", "sizes.yaml", "--replan", "on")
            live = until_decided(client, "sizes")
        finally:
            traffic.stop()
        assert live.replanning is not None
        assert live.replanning.last is not None
        assert live.replanning.last.outcome is ReplanOutcome.APPLIED, live.replanning
        assert live.version == 1
        after = parse_plan(live.plan, "plan")
        assert after.rate_per_s == live.replanning.planned_per_s > 10.0
        kept = sum(g.replicas for g in after.stages["size"].groups)
        assert kept > 1
        shown = call("status", "sizes")
        assert "follows the traffic" in shown.stderr
        assert f"1 -> {kept} containers" in shown.stderr
        data = json.loads(call("status", "sizes", "-o", "json").stdout)["replanning"]
        assert (data["mode"], data["last"]["reason"], data["last"]["outcome"]) == ("on", "more than planned", "applied")
        assert not traffic.wrong, "an invocation was lost"
        assert traffic.good > 20
        call("apply", "sizes.yaml", "--replan", "off")
        off = client.workflow("sizes")
        assert off.replanning is None
        assert parse_plan(off.plan, "plan").rate_per_s == after.rate_per_s
