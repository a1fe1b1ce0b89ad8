"""Measured prompts and steps as a cost: what was put in comes out, nothing is below what was seen."""

from __future__ import annotations

import pytest

from dataflower.planner import DocumentInvalid, parse_measured
from dataflower.planner.measured import TokensProfile
from dataflower.planner.token_fit import cost_of

PROFILE = """\
apiVersion: dataflower/v1
kind: Profile
workflow: chat
device: cpu
stages:
  complete:
    points: [{batch: 1, duration_ms: 900.0}]
    tokens:
      sequences: 8
      step_tokens: 512
      kv_tokens: 20000
      context: 2048
      takes: [max_sequences, step_tokens, ttft_ms]
      prompt: {mean: 100, high: 400}
      output: {mean: 30, high: 60}
      prefill:
        - {tokens: 64, duration_ms: 52.0, high_ms: 60.0, busy_ms: 70.0, busy_high_ms: 90.0}
        - {tokens: 512, duration_ms: 300.0}
      decode:
        - {batch: 1, context: 64, duration_ms: 20.0, high_ms: 24.0, busy_ms: 30.0, busy_high_ms: 40.0}
        - {batch: 8, context: 64, duration_ms: 34.0}
        - {batch: 1, context: 1024, duration_ms: 22.0}
"""


def tokens_of(text: str = PROFILE) -> TokensProfile:
    tokens = parse_measured(text, "chat.yaml").stages["complete"].tokens
    assert tokens is not None
    return tokens


def synthetic(base: float, line: float, square: float, looking: float) -> TokensProfile:
    """Exactly what a model of these costs would show, in ms."""
    prefill = [
        {"tokens": n, "duration_ms": base * -(-n // 512) + line * n + square * n * n / 2}
        for n in (16, 64, 256, 512, 1024)
    ]
    decode = [
        {"batch": b, "context": c, "duration_ms": base + b * c * looking + (b - 1)}
        for b, c in ((1, 64), (2, 64), (4, 64), (1, 1024))
    ]
    lengths = {"mean": 100.0, "high": 200.0}
    return TokensProfile.model_validate(
        {"sequences": 4, "step_tokens": 512, "context": 4096, "prompt": lengths, "output": lengths}
        | {"prefill": prefill, "decode": decode}
    )


def test_costs_that_were_put_in_come_out() -> None:
    cost = cost_of(synthetic(20.0, 0.5, 0.0004, 0.002))
    assert cost.prompt_s == pytest.approx(0.0005, rel=1e-3)
    assert cost.attend_s == pytest.approx(4e-7, rel=1e-2)
    assert cost.context_s == pytest.approx(2e-6, rel=1e-6)
    assert [b for b, _ in cost.steps] == [1, 2, 4]
    assert [s for _, s in cost.steps] == pytest.approx([0.020, 0.021, 0.023])


def test_nothing_is_below_what_was_seen() -> None:
    profile = tokens_of()
    for high, busy in ((False, False), (True, False), (True, True)):
        cost = cost_of(profile, high=high, busy=busy)
        for prefill in profile.prefill:
            chunks = -(-prefill.tokens // profile.step_tokens)
            assert cost.prompt(prefill.tokens) + chunks * cost.step(1) >= prefill.duration_ms / 1000 - 1e-9
        for decode in profile.decode:
            held = cost.holding(decode.context)
            assert held.step(decode.batch) >= decode.duration_ms / 1000 - 1e-9


def test_percentiles_and_company_count_where_they_are_known() -> None:
    profile = tokens_of()
    median, high, busy = (
        cost_of(profile, high=h, busy=b).step(1) for h, b in ((False, False), (True, False), (True, True))
    )
    assert median < high < busy


def test_steps_can_be_made_smaller_where_the_function_lets_them() -> None:
    assert cost_of(tokens_of()).resizable
    assert not cost_of(tokens_of(PROFILE.replace("step_tokens, ttft_ms]", "ttft_ms]"))).resizable


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "tokens: 512, duration_ms: 300.0",
            "tokens: 512, duration_ms: 40.0",
            "chat.yaml:18:38: a prompt of 512 tokens",
        ),
        (
            "batch: 8, context: 64, duration_ms: 34.0",
            "batch: 8, context: 64, duration_ms: 4.0",
            "chat.yaml:21:48: a step of 8",
        ),
        (
            "mean: 100, high: 400",
            "mean: 100, high: 40",
            "chat.yaml:14:15: a mean of 100 tokens can't be above the most",
        ),
        ("sequences: 8", "sequences: 600", "chat.yaml:9:7: step_tokens: 512 leave no room"),
        ("batch: 1, context: 1024", "batch: 1, context: 64", "two points for one batch and context"),
        ("tokens: 64, duration_ms: 52.0", "tokens: 64, duration_ms: 0", "chat.yaml:17:"),
        ("prefill:", "prefil:", "unknown key 'prefil'"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_line(before: str, after: str, said: str) -> None:
    assert before in PROFILE
    with pytest.raises(DocumentInvalid) as caught:
        parse_measured(PROFILE.replace(before, after), "chat.yaml")
    assert said in str(caught.value)


def test_a_profile_with_tokens_survives_its_file() -> None:
    document = parse_measured(PROFILE, "chat.yaml")
    assert type(document).model_validate(document.as_data()) == document
