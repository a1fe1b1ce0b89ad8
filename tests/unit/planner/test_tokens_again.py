"""Plans with a language model are planned again: more replicas of the same containers, for the same objectives."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dataflower.core.plan import Length, Replan
from dataflower.planner import (
    Application,
    Arrivals,
    Billing,
    Device,
    DocumentInvalid,
    Module,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    Question,
    document_of,
    parse_plan,
)
from dataflower.planner.again import plan_again
from dataflower.planner.answers import TokenKind, TokenStage
from dataflower.planner.basis import question_of
from dataflower.planner.dispatch import dispatch_of, tuned
from dataflower.planner.document import PlanDocument
from dataflower.planner.plan import answer
from dataflower.planner.promises import Promises, settle
from dataflower.planner.synthetic import workflow_of
from dataflower.planner.tokens import TokenCost

COST = TokenCost(((1, 0.02), (4, 0.024), (16, 0.04)), 0.0005, 512, context_s=1e-7, attend_s=1e-8)
APP = Application("app", (Module("look", "look"), Module("tell", "tell")), (("look", "tell"),))
QUESTION = Question(
    APP,
    Profiles(
        (
            Profile("look", "cpu", tuple(Point(b, 0.01 * (1 + b)) for b in (1, 2, 4))),
            Profile("tell", "cpu", (Point(1, 1.0),)),
        ),
        {"cpu": Device("cpu", 1.0)},
    ),
    Options(arrivals=Arrivals.POISSON, billing=Billing.INTEGER, percentile=99.0),
    tokens={
        "tell": TokenStage(
            (TokenKind("cpu", 1.0, COST),), (60.0, 200.0), (30.0, 80.0), takes=("max_sequences", "step_tokens")
        )
    },
)
SLO_S = 6.0


def made(rate: float) -> PlanDocument:
    question = settle(QUESTION, rate, Promises(1.0, 0.08, 0.2), ["tell"])
    assert isinstance(question, Question)
    found = answer(question, rate, SLO_S)
    assert isinstance(found, Plan)
    document = document_of(found, question.options, question=question).model_copy(update={"replan": Replan.ON})
    read = parse_plan(json.dumps(document.as_data()), "plan.json")  # `replan: on` is taken, since there is a basis
    assert read == document
    return read


def replicas(document: PlanDocument) -> int:
    return sum(group.replicas for group in document.stages["tell"].groups)


def test_the_question_is_the_same_one() -> None:
    document = made(2.0)
    assert document.basis is not None
    question = question_of(document.basis, "app")
    stage = question.tokens["tell"]
    (kind,) = stage.kinds
    assert (kind.cost.steps, kind.cost.prompt_s, kind.cost.step_tokens) == (COST.steps, COST.prompt_s, COST.step_tokens)
    assert (kind.cost.context_s, kind.cost.attend_s) == (pytest.approx(1e-7), pytest.approx(1e-8))
    assert (stage.prompt, stage.output, stage.takes) == ((60.0, 200.0), (30.0, 80.0), ("max_sequences", "step_tokens"))
    assert (stage.tpot_s, stage.gap_s) == (pytest.approx(0.08), pytest.approx(0.2))
    assert stage.ttft_s is not None
    assert question.caps["look"] + stage.ttft_s <= 1.0 + 1e-9
    again = answer(question, 2.0, SLO_S)
    assert isinstance(again, Plan)
    assert document_of(again, question.options, question=question).stages == document.stages


def test_more_traffic_takes_more_of_the_same_containers() -> None:
    present = made(2.0)
    document = plan_again(present, 9.0, lambda _: "").document
    assert document is not None
    assert document.rate_per_s == 9.0
    assert replicas(document) > replicas(present)
    tokens, before = document.stages["tell"].tokens, present.stages["tell"].tokens
    assert tokens is not None
    assert before is not None
    assert (tokens.step_tokens, tokens.params) == (before.step_tokens, before.params)
    assert tokens.sequences <= before.sequences
    assert (tokens.ttft_limit_ms, tokens.tpot_limit_ms) == (before.ttft_limit_ms, before.tpot_limit_ms)
    workflow = workflow_of(APP).workflow
    assert tuned(workflow, document) == tuned(workflow, present)
    assert dispatch_of(document, workflow).stages[1].groups[0].points == ()
    counted = dispatch_of(document, workflow).stages[1].tokens
    assert counted is not None
    usual = Length(tokens.prompt_tokens.mean, 0.0, tokens.output_tokens.mean)
    assert counted.weight(usual) == counted.weight(Length(usual.prompt)) == 1.0
    assert counted.weight(Length(2 * usual.prompt)) > 1 > counted.weight(Length(usual.prompt, 0.0, 1.0))
    assert counted.longest == tokens.output_tokens.high
    back = plan_again(parse_plan(json.dumps(document.as_data()), "p"), 2.0, lambda _: "").document
    assert back is not None
    assert replicas(back) == replicas(present)
    assert back.stages["tell"].tokens is not None
    assert back.stages["tell"].tokens.sequences == before.sequences


def test_answers_that_take_longer_take_more_containers() -> None:
    present = made(6.0)
    document = plan_again(present, 6.0, lambda _: "", slowdown={"tell": 1.5}).document
    assert document is not None
    assert replicas(document) > replicas(present)
    assert document.basis is not None
    assert document.basis.stages["tell"].slowdown == 1.5
    hopeless = plan_again(present, 6.0, lambda _: "", slowdown={"tell": 10.0})
    assert hopeless.document is None
    assert "tell" in hopeless.note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": {"mean": 300.0, "high": 200.0}}, "the mean of 300 is above 200"),
        ({"kinds": {}}, "kinds"),
        ({"ttft_ms": -1.0}, "ttft_ms"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    data = made(2.0).as_data()
    data["basis"]["stages"]["tell"]["tokens"].update(change)
    with pytest.raises(DocumentInvalid, match=message):
        parse_plan(json.dumps(data, indent=1), "plan.json")


def test_devices_that_are_not_there_are_said() -> None:
    present = made(2.0)
    assert present.basis is not None
    with pytest.raises(Exception, match="on cpu only, which is not here"):
        question_of(present.basis, "app", lambda stage, device: stage != "tell")


def test_a_margin_goes_along() -> None:
    question = replace(QUESTION, options=replace(QUESTION.options, margin=0.2))
    found = answer(question, 2.0, SLO_S)
    assert isinstance(found, Plan)
    present = document_of(found, question.options, question=question)
    again = plan_again(present, 2.0, lambda _: "").document
    assert again is not None
    assert replicas(again) == replicas(present)
