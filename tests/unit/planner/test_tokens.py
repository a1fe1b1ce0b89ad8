"""Plans for stages that work in tokens, held against the scheduler that runs them, step by step in simulated time."""

from __future__ import annotations

import contextlib
import random

import pytest

from dataflower.errors import InvalidArgument
from dataflower.llm.blocks import BlockManager
from dataflower.llm.errors import QueueFull
from dataflower.llm.params import SamplingParams
from dataflower.llm.scheduler import Limits, Scheduler
from dataflower.llm.sequence import Sequence
from dataflower.planner.tokens import (
    Steady,
    TokenCost,
    TokenLoad,
    TokenPlan,
    TokensInfeasible,
    TokenSlo,
    plan_tokens,
    steady,
)

COST = TokenCost(steps=((1, 0.030), (8, 0.036), (16, 0.044)), prompt_s=0.0005, step_tokens=256)
LOAD = TokenLoad(rate=2.0, prompt=(200, 600), output=(40, 120))


def played(
    cost: TokenCost,
    load: TokenLoad,
    requests: int = 1500,
    seed: int = 1,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
) -> tuple[list[float], float]:
    """Times to the first token, and the mean of the further ones, of Poisson arrivals at one replica.

    `ttft_s`: those who would be late are refused, and don't count. `tpot_s`: answers wait that would slow the others.
    """
    chance = random.Random(seed)
    scheduler = Scheduler(
        Limits(step_tokens=cost.step_tokens, sequences=cost.most, waiting=10_000, ttft_s=ttft_s, tpot_s=tpot_s),
        BlockManager(20_000, 16),
    )
    at, coming = 0.0, []
    for number in range(requests):
        at += chance.expovariate(load.rate)
        prompt = min(round(1 + chance.expovariate(1 / load.prompt[0])), 2000)
        answer = min(round(2 + chance.expovariate(1 / load.output[0])), 1000)
        tokens = [number * 3 % 50_000 + i for i in range(prompt)]  # nobody begins like another
        coming.append((at, Sequence(number, number, tokens, SamplingParams(max_tokens=answer), prompt + answer)))
    now, arrived, begun, ended = 0.0, {}, {}, {}
    while coming or scheduler.running or scheduler.waiting:
        while coming and (coming[0][0] <= now or not (scheduler.running or scheduler.waiting)):
            since, sequence = coming.pop(0)
            now = max(now, since)
            with contextlib.suppress(QueueFull):
                scheduler.submit(sequence)
                arrived[sequence.number] = since
        step = scheduler.schedule()
        decoding = sum(1 for chunk in step.chunks if chunk.sequence.decoding)
        prompts = sum(chunk.count for chunk in step.chunks if not chunk.sequence.decoding)
        took = (cost.step(decoding) if decoding else 0.0) + prompts * cost.prompt_s
        now += took
        scheduler.pace.note(prompts, took, decoding)
        scheduler.advance(step, {chunk.sequence.number: 7 for chunk in step.chunks if chunk.sample})
        for chunk in step.chunks:
            number = chunk.sequence.number
            if chunk.sample:
                begun.setdefault(number, now)
            if chunk.sequence.finish is not None:
                ended[number] = (now, chunk.sequence.generated)
                scheduler.finish(chunk.sequence, chunk.sequence.finish)
    first = [begun[n] - arrived[n] for n in arrived]
    return first, sum(end - begun[n] for n, (end, _) in ended.items()) / sum(count - 1 for _, count in ended.values())


@pytest.mark.parametrize("rate", [0.5, 1.5, 3.0])
def test_what_is_promised_holds_in_the_scheduler_that_runs(rate: float) -> None:
    load = TokenLoad(rate, (200, 920), (40, 185))  # of exponential lengths: 4.6 times the mean at the percentile
    promised = steady(COST, load)
    assert promised is not None
    first, further = played(COST, load)
    assert sorted(first)[int(0.99 * len(first))] <= promised.ttft_s
    assert further <= promised.tpot_s


@pytest.mark.parametrize("lengths", [((200, 920), (40, 185)), ((600, 2000), (20, 90)), ((60, 280), (150, 690))])
def test_under_overload_those_who_are_taken_are_served_in_time(
    lengths: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Four times what is sustainable, by prompts or by answers: what a request weighs is known when it comes."""
    prompt, answer = lengths
    most = next(rate / 4 for rate in range(80, 0, -1) if steady(COST, TokenLoad(rate / 4, prompt, answer)) is not None)
    load = TokenLoad(4 * most, prompt, answer)
    taken, further = played(COST, load, ttft_s=2.0)
    all_of_them, _ = played(COST, load)
    late = sum(first > 2.0 for first in taken) / len(taken)
    assert late <= 0.05
    assert sum(first > 2.0 for first in all_of_them) / len(all_of_them) > 0.8  # nobody refused: nearly all are late
    assert further <= COST.step(16) + COST.step_tokens * COST.prompt_s  # a step as long as steps get
    assert len(taken) / 1500 >= 0.15  # not for nothing: a quarter could be served


def test_a_machine_slower_than_planned_keeps_the_time_of_a_token_all_the_same() -> None:
    """A plan for 16 answers at a time and 50 ms a token, on a machine that takes 40 to 70 by their number."""
    slower = TokenCost(steps=((1, 0.040), (8, 0.050), (16, 0.070)), prompt_s=0.0002, step_tokens=256)
    load = TokenLoad(4.0, (60, 280), (40, 185))
    unkept_first, unkept = played(slower, load, requests=600)
    first, kept = played(slower, load, requests=600, tpot_s=0.050)
    assert unkept > 0.055
    assert kept <= 0.050
    taken, kept = played(slower, load, requests=600, tpot_s=0.050, ttft_s=2.0)
    assert kept <= 0.050
    assert sum(seconds > 2.0 for seconds in taken) / len(taken) <= 0.05, (
        "who would wait too long for a place is refused"
    )
    assert 200 <= len(taken) < 600
    assert sum(first) > sum(unkept_first), "what the others save, those who wait pay"


def test_promise_is_not_out_of_reach_of_what_is_seen() -> None:
    load = TokenLoad(2.0, (200, 920), (40, 185))
    promised = steady(COST, load)
    assert promised is not None
    first, further = played(COST, load)
    assert promised.ttft_s <= 3 * sorted(first)[int(0.99 * len(first))]
    assert promised.tpot_s <= 1.5 * further


def test_prompts_and_answers_cost_separately() -> None:
    quiet = steady(COST, TokenLoad(1.0, (10, 20), (40, 120)))
    prompts = steady(COST, TokenLoad(1.0, (400, 600), (40, 120)))
    answers = steady(COST, TokenLoad(1.0, (10, 20), (150, 400)))
    assert quiet is not None
    assert prompts is not None
    assert answers is not None
    assert prompts.ttft_s > 3 * quiet.ttft_s
    assert answers.sequences > 3 * quiet.sequences
    assert answers.ttft_s < prompts.ttft_s


def test_fewest_replicas_that_keep_both_objectives() -> None:
    slo = TokenSlo(ttft_s=1.0, tpot_s=0.045)
    found = plan_tokens(COST, TokenLoad(12.0, LOAD.prompt, LOAD.output), slo)
    assert isinstance(found, TokenPlan)
    assert found.steady.ttft_s <= 1.0
    assert found.steady.tpot_s <= 0.045
    fewer = steady(COST, TokenLoad(12.0 / (found.replicas - 1), LOAD.prompt, LOAD.output))
    assert fewer is None or fewer.ttft_s > 1.0 or fewer.tpot_s > 0.045
    assert 1 <= found.sequences <= COST.most


def test_more_replicas_for_more_requests_and_tighter_objectives() -> None:
    def replicas(rate: float, ttft_s: float | None, tpot_s: float | None) -> int:
        found = plan_tokens(COST, TokenLoad(rate, LOAD.prompt, LOAD.output), TokenSlo(ttft_s, tpot_s))
        assert isinstance(found, TokenPlan)
        return found.replicas

    assert replicas(4.0, 2.0, None) <= replicas(16.0, 2.0, None)
    assert replicas(16.0, 2.0, None) <= replicas(16.0, 0.7, None)
    assert replicas(16.0, 2.0, None) <= replicas(16.0, 2.0, 0.035)


def test_objectives_that_one_request_alone_would_miss() -> None:
    found = plan_tokens(COST, LOAD, TokenSlo(ttft_s=0.2, tpot_s=0.02))
    assert isinstance(found, TokensInfeasible)
    assert "a prompt of 600 tokens alone takes 0." in found.reason
    assert "a further token takes 30.0 ms alone, not 20" in found.reason
    assert found.tpot_s == 0.030


def test_room_for_keys_and_values_limits_a_replica() -> None:
    small = TokenCost(COST.steps, COST.prompt_s, COST.step_tokens, kv_tokens=1000)
    slo = TokenSlo(ttft_s=5.0)
    plans = [plan_tokens(cost, TokenLoad(6.0, (100, 200), (40, 120)), slo) for cost in (COST, small)]
    assert all(isinstance(plan, TokenPlan) for plan in plans)
    assert [plan.replicas for plan in plans if isinstance(plan, TokenPlan)] == sorted(
        plan.replicas for plan in plans if isinstance(plan, TokenPlan)
    )
    assert steady(small, TokenLoad(6.0, (100, 200), (40, 120))) is None


@pytest.mark.parametrize(
    "wrong", [{"steps": ()}, {"prompt_s": 0.0}, {"steps": ((1, 0.03), (8, 0.02))}, {"step_tokens": 16}]
)
def test_costs_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        TokenCost(**{"steps": COST.steps, "prompt_s": 0.001, "step_tokens": 256, **wrong})  # type: ignore[arg-type]


def test_loads_that_make_no_sense() -> None:
    for wrong in ((0.0, (1, 2), (1, 2)), (1.0, (2, 1), (1, 2)), (1.0, (1, 2), (0, 2))):
        with pytest.raises(InvalidArgument):
            TokenLoad(*wrong)
    assert isinstance(steady(COST, LOAD), Steady)


def test_looking_back_costs() -> None:
    far = TokenCost(COST.steps, COST.prompt_s, COST.step_tokens, context_s=1e-5, attend_s=1e-6)
    assert far.holding(1000).step(8) == pytest.approx(0.036 + 0.08)
    assert far.prompt(600) == pytest.approx(0.3 + 0.18)
    near, behind = steady(COST, LOAD), steady(far, LOAD)
    assert near is not None
    assert behind is not None
    assert behind.ttft_s > near.ttft_s
    assert behind.tpot_s > near.tpot_s


def test_prompts_in_pieces_keep_gaps_short() -> None:
    slo = TokenSlo(ttft_s=2.0, gap_s=0.080)
    found = plan_tokens(COST, TokenLoad(1.0, LOAD.prompt, LOAD.output), slo)
    free = plan_tokens(COST, TokenLoad(1.0, LOAD.prompt, LOAD.output), TokenSlo(ttft_s=2.0))
    assert isinstance(found, TokenPlan)
    assert isinstance(free, TokenPlan)
    assert found.step_tokens < COST.step_tokens
    assert found.gap_s <= 0.080
    assert found.steady.ttft_s >= free.steady.ttft_s * 0.99
    fixed = plan_tokens(TokenCost(COST.steps, COST.prompt_s, COST.step_tokens, resizable=False), LOAD, slo)
    assert isinstance(fixed, TokensInfeasible)
    assert "a step with a piece of a prompt takes" in fixed.reason


def test_one_answer_at_a_time() -> None:
    single = COST.limited(1)
    assert (single.most, single.step(1), single.step(3)) == (1, 0.030, 0.030)
