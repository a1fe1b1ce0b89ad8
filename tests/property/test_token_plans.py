"""Plans for tokens: more traffic and tighter objectives never take less, and what is called nearest is, and holds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dataflower.planner import (
    Application,
    Arrivals,
    Billing,
    Device,
    Infeasible,
    Module,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    Question,
    Tenant,
    plan_together,
)
from dataflower.planner.answers import TokenKind, TokenStage
from dataflower.planner.promises import Promises, PromisesBroken, settle
from dataflower.planner.tokens import TokenCost, TokenLoad, TokenPlan, TokenSlo, plan_tokens, steady

OPTIONS = Options(arrivals=Arrivals.POISSON, billing=Billing.INTEGER, percentile=99.0)


@st.composite
def costs(draw: st.DrawFn) -> TokenCost:
    seconds, steps = draw(st.floats(0.005, 0.08)), []
    for batch in (1, 2, 4, 8, 16)[: draw(st.integers(3, 5))]:
        steps.append((batch, seconds))
        seconds *= draw(st.floats(1.0, 1.6))
    return TokenCost(
        tuple(steps),
        draw(st.floats(0.0001, 0.003)),
        draw(st.sampled_from([128, 512])),
        context_s=draw(st.floats(0, 2e-6)),
        attend_s=draw(st.floats(0, 1e-6)),
    )


@st.composite
def loads(draw: st.DrawFn) -> TokenLoad:
    prompt, output = draw(st.floats(5, 400)), draw(st.floats(2, 100))
    return TokenLoad(
        draw(st.floats(0.1, 20)), (prompt, prompt * draw(st.floats(1, 4))), (output, output * draw(st.floats(1, 4)))
    )


def replicas(cost: TokenCost, load: TokenLoad, slo: TokenSlo) -> float:
    found = plan_tokens(cost, load, slo)
    return found.replicas if isinstance(found, TokenPlan) else float("inf")


@settings(max_examples=60, deadline=None)
@given(costs(), loads(), st.floats(0.05, 5), st.floats(0.01, 0.4), st.floats(1.01, 3))
def test_more_traffic_and_tighter_objectives_take_no_less(
    cost: TokenCost, load: TokenLoad, ttft: float, tpot: float, by: float
) -> None:
    slo = TokenSlo(ttft, tpot)
    here = replicas(cost, load, slo)
    assert replicas(cost, replace(load, rate=load.rate * by), slo) >= here
    assert replicas(cost, load, replace(slo, ttft_s=ttft / by)) >= here
    assert replicas(cost, load, replace(slo, tpot_s=tpot / by)) >= here
    assert replicas(cost, load, replace(slo, gap_s=2 * tpot)) >= here
    even = replace(load, prompt=(load.prompt[0], load.prompt[0]))  # the longer one is that at the percentile
    assert replicas(cost, even, replace(slo, percentile=99.9)) >= replicas(cost, even, slo)


@settings(max_examples=60, deadline=None)
@given(costs(), loads(), st.floats(0.05, 5), st.floats(0.01, 0.4))
def test_a_plan_keeps_what_it_promises(cost: TokenCost, load: TokenLoad, ttft: float, tpot: float) -> None:
    found = plan_tokens(cost, load, TokenSlo(ttft, tpot, gap_s=0.5))
    assume(isinstance(found, TokenPlan))
    assert isinstance(found, TokenPlan)
    assert found.steady.ttft_s <= ttft
    assert found.steady.tpot_s <= tpot
    assert found.gap_s <= 0.5
    assert found.sequences < found.step_tokens <= cost.step_tokens
    again = steady(replace(cost, step_tokens=found.step_tokens), replace(load, rate=load.rate / found.replicas))
    assert again is not None
    assert found.steady.sequences <= found.sequences <= cost.most


def mixed(cost: TokenCost, load: TokenLoad, before_s: float, margin: float) -> Question:
    """A detector, then a model."""
    modules = (Module("look", "look"), Module("tell", "tell"))
    profiles = (
        Profile("look", "cpu", tuple(Point(b, before_s * (1 + b) / 2) for b in (1, 2, 4))),
        Profile("tell", "cpu", (Point(1, 1.0),)),
    )
    stage = TokenStage((TokenKind("cpu", 1.0, cost),), load.prompt, load.output)
    return Question(
        Application("app", modules, (("look", "tell"),)),
        Profiles(profiles, {"cpu": Device("cpu", 1.0)}),
        replace(OPTIONS, margin=margin),
        tokens={"tell": stage},
    )


DEAR = TokenCost(((1, 0.0634), (2, 0.0932), (4, 0.147), (8, 0.1526)), 0.003, 128, attend_s=4.37e-08)
MUCH = TokenLoad(13.708, (201.96, 502.42), (82.79, 266.14))
"""Asks for nearly as many replicas as are looked at: the split took more of them, and there was no plan."""


@settings(max_examples=12, deadline=None)
@example(DEAR, MUCH, 0.2, 0.1, 2.2272, 0.15555)
@given(costs(), loads(), st.floats(0.002, 0.2), st.sampled_from([0.0, 0.1]), st.floats(0.03, 3), st.floats(0.01, 0.3))
def test_what_is_called_nearest_can_be_planned_and_nothing_much_nearer_can(
    cost: TokenCost, load: TokenLoad, before_s: float, margin: float, ttft: float, tpot: float
) -> None:
    question = mixed(cost, load, before_s, margin)
    asked = Promises(ttft, tpot)
    found = settle(question, load.rate, asked, ["tell"])
    if isinstance(found, Question):
        slo_s = ttft + load.output[1] * tpot
        planned = plan_together([Tenant(found, load.rate, slo_s)], found.options, explain=False)
        assert not isinstance(planned, Infeasible)
        (plan,) = planned.plans
        assert isinstance(plan, Plan)
        held = {stage.stage: stage for stage in plan.stages}
        tokens = held["tell"].tokens
        assert tokens is not None
        assert held["look"].worst_s + tokens.steady.ttft_s <= ttft * (1 - margin) * (1 + 1e-6)
        assert tokens.steady.tpot_s <= tpot * (1 - margin) * (1 + 1e-9)
        return
    assert isinstance(found, PromisesBroken)
    assert found.reason
    nearest = found.nearest
    if nearest is None:
        return
    assert isinstance(settle(question, load.rate, nearest, ["tell"], explain=False), Question)
    for name, value, wanted in (("ttft_s", nearest.ttft_s, ttft), ("tpot_s", nearest.tpot_s, tpot)):
        assert value is not None
        assert value >= wanted
        if value > wanted:
            nearer = replace(nearest, **{name: max(wanted, value * 0.99)})
            assert isinstance(settle(question, load.rate, nearer, ["tell"], explain=False), PromisesBroken)
    if found.prompt_tokens is not None:
        mean, high = load.prompt
        stage = question.tokens["tell"]
        shorter = replace(stage, prompt=(mean * found.prompt_tokens / high, float(found.prompt_tokens)))
        again = replace(question, tokens={"tell": shorter})
        assert isinstance(settle(again, load.rate, asked, ["tell"], explain=False), Question)
