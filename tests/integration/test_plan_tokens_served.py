"""A plan for a language model in a running host: its limits reach the function, another plan's reach new containers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import workflows_for_tests as w

from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.spec.function import Port
from dataflower.spec.workflow import Output, Workflow

FUNCTIONS = """
import threading


class Tell:
    def setup(self, max_sequences=16, step_tokens=512, ttft_ms=None):
        self.limits = [max_sequences, step_tokens, ttft_ms]
        self.together = threading.Barrier(max_sequences)

    def __call__(self, x):
        if x:
            self.together.wait(timeout=20)
        return self.limits
"""
PLAN = """apiVersion: dataflower/v1
kind: Plan
workflow: chat
rate_per_s: 4
slo_ms: 60000
percentile: 99
arrivals: poisson
billing: integer
cost_per_hour: 1
cost_per_1000: 0.01
worst_ms: 1000
stages:
  tell:
    budget_ms: 50000
    rate_per_s: 4
    groups:
      - {device: cpu, batch: SEQUENCES, machines: 1, replicas: REPLICAS, rate_per_s: 4, duration_ms: 500,
         timeout_ms: 10, worst_ms: 1000}
    tokens:
      sequences: SEQUENCES
      step_tokens: 128
      ttft_ms: 300
      tpot_ms: 20
      itl_ms: 90
      ttft_limit_ms: 700
      prompt_tokens: {mean: 10, high: 30}
      output_tokens: {mean: 10, high: 30}
      params: {max_sequences: SEQUENCES, step_tokens: 128, ttft_ms: 700}
"""


def plan(sequences: int, replicas: int = 1) -> str:
    return PLAN.replace("SEQUENCES", str(sequences)).replace("REPLICAS", str(replicas))


def chat() -> Workflow:
    stage = w.stage("tell", "ignored", {"x": "inputs.x"})
    stage = replace(stage, function="telling_in_test:Tell")
    return Workflow("chat", {"tell": stage}, (Port("x"),), (Output("y", w.edge("tell.out")),))


async def call(host: Runtime, x: int = 0) -> list[object]:
    found: list[object] = (await (await host.invoke("chat", {"x": x})).result())["y"]
    return found


async def test_limits_reach_the_function_and_follow_the_plan(tmp_path: Path) -> None:
    (tmp_path / "telling_in_test.py").write_text(FUNCTIONS)
    config = HostConfig(code_path=(str(tmp_path), *w.CODE_PATH), cpus=2, state_dir=tmp_path / "state")
    async with Runtime(config, load=lambda _text, _file: chat()) as host:
        first = await host.apply(chat(), "chat", plan=plan(3))
        await host.wait_ready("chat")
        running = [await host.invoke("chat", {"x": 1}) for _ in range(3)]  # they wait for each other
        assert [(await one.result())["y"] for one in running] == [[3, 128, 700]] * 3

        same = await host.apply(chat(), "chat", plan=plan(3, replicas=2))
        assert same.version == first.version
        assert await call(host) == [3, 128, 700]

        other = await host.apply(chat(), "chat", plan=plan(5))
        assert other.version == first.version + 1
        assert await call(host) == [5, 128, 700]
        assert (await host.apply(chat(), "chat")).version == other.version

        plain = await host.apply(chat(), "chat", plan="")
        assert plain.version == other.version + 1
        assert await call(host) == [16, 512, None]
        await host.apply(chat(), "chat", plan=plan(2))
    async with Runtime(config, load=lambda _text, _file: chat()) as host:
        assert await call(host) == [2, 128, 700]
