"""Admission weighs requests to language models by their tokens, seen when they come."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from dataflower import wire
from dataflower.core import events
from dataflower.core.lengths import length_of
from dataflower.core.plan import DispatchPlan, GroupPlan, Length, StageDispatch, TokenPlan
from dataflower.core.values import constant
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Scaling
from dataflower.testing.story import Story, stage, workflow

COST = TokenPlan(prompt_s=0.001, answer_s=0.01, token_s=0.04, prompt=100.0, answer=20.0, longest=50.0)
"""A usual request takes .3 s of a container: .1 for its prompt and .2 for its answer."""
GROUP = GroupPlan(4, 1, 1.2, 3.0)
"""Four answers at a time, a usual one in 1.2 s."""


def told(slo_s: float = 4.0, cost: TokenPlan | None = COST) -> Story:
    """A container with a language model whose plan promises this."""
    one = stage("b", {"request": "inputs.request"}, scaling=Scaling(max_replicas=1, concurrency=4))
    story = Story(workflow([one], {"out": "b.out"}, inputs=["request"]))
    only = StageDispatch("b", (GROUP,), slo_s, 1.2, tokens=cost)
    story.tell(events.PlanChanged("w@1", DispatchPlan(slo_s, 3.0, (only,))))
    return story


def asks(story: Story, number: int, prompt: int = 100, **more: Any) -> bool:
    """Whether a request with a prompt of so many tokens is let in."""
    story.invoke(f"i{number}", request={"prompt": [7] * prompt, **more})
    return f"i{number}" not in story.finished


def let_in(story: Story, **request: Any) -> int:
    """How many alike are let in one after the other."""
    return next(number for number in range(100) if not asks(story, number, **request))


def test_fewer_long_prompts_and_more_short_answers_are_let_in_than_usual_requests() -> None:
    usual = let_in(told())
    assert 5 <= usual <= 9
    assert let_in(told(), prompt=700) <= usual / 2, "each takes as long as three"
    assert let_in(told(), prompt=20, max_tokens=1) > usual


def test_without_a_word_of_tokens_in_the_plan_a_request_is_a_request() -> None:
    assert let_in(told(cost=None), prompt=700) == let_in(told(cost=None)) == let_in(told())


def test_who_is_refused_hears_when_to_come_again() -> None:
    story = told()
    number = let_in(story, prompt=700)
    refused = story.finished[f"i{number}"]
    assert refused is not None
    assert (refused.code, refused.kind) == (Code.RESOURCE_EXHAUSTED, "Overloaded")
    assert refused.retry_after_s > 0
    story.wait(refused.retry_after_s + 0.1)
    for running in range(number):
        if story.is_running("b"):
            story.done("b", out=running)
    assert asks(story, number + 1)


def test_the_first_token_comes_in_time_or_the_request_is_refused() -> None:
    hasty = replace(COST, ttft_s=0.5)
    assert let_in(told(20.0)) > let_in(told(20.0, hasty)) >= 4, "four have a place at once"
    longer = let_in(told(20.0, hasty), prompt=400)
    assert longer < let_in(told(20.0, hasty)), "of the half second, .4 go into the prompt itself"


def test_a_prompt_too_long_by_itself_is_taken_if_nobody_is_before_it() -> None:
    story = told(20.0, replace(COST, ttft_s=0.5))
    assert asks(story, 0, prompt=900)


def test_an_answer_that_is_to_be_longer_than_there_is_time_for_is_refused_at_once() -> None:
    assert asks(told(), 0, max_tokens=400), "it may be so long, it need not"
    assert not asks(told(), 0, max_tokens=400, ignore_eos=True)
    assert not asks(told(), 0, min_tokens=400)


def queued(prompt: int, waiting: int = 3) -> Story:
    """Four requests run, and some with prompts of so many tokens wait, when the first plan comes."""
    one = stage("b", {"request": "inputs.request"}, scaling=Scaling(max_replicas=1, concurrency=4))
    story = Story(workflow([one], {"out": "b.out"}, inputs=["request"]))
    for number in range(4 + waiting):
        story.invoke(f"before{number}", request={"prompt": [7] * prompt})
    only = StageDispatch("b", (GROUP,), 4.0, 1.2, tokens=COST)
    story.tell(events.PlanChanged("w@1", DispatchPlan(4.0, 3.0, (only,))))
    return story


def test_what_waits_already_counts_by_its_tokens() -> None:
    usual, long, short = (let_in(queued(prompt, waiting=6)) for prompt in (100, 1300, 5))
    assert long == 0, "six that take as long as thirty have no time left before it"
    assert 0 < usual < short


def test_a_task_weighs_nothing_any_more_when_it_runs_or_its_caller_has_left() -> None:
    story = queued(1300)
    for number in (4, 5, 6):
        story.tell(events.CancelArrived(f"before{number}", Failure(Code.CANCELLED, "Cancelled", "left")))
    assert let_in(story) == let_in(queued(1300, waiting=0)) > 0
    story = queued(1300)
    story.done("b", out=0)  # one that waits takes its place
    story.core.check_integrity()
    story.tell(events.PlanChanged("w@1", None))
    story.core.check_integrity()


def said(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


LENGTHS: list[tuple[Any, Length | None]] = [
    ({"prompt": [1, 2, 3]}, Length(3.0)),
    ({"prompt": "abcdefgh", "max_tokens": 5}, Length(2.0, 0.0, 5.0)),
    ({"messages": said("abcd"), "max_tokens": 9, "max_completion_tokens": 7}, Length(5.0, 0.0, 7.0)),
    ({"messages": said([{"type": "text", "text": "äöüß"}, {"type": "image"}])}, Length(6.0)),
    ({"messages": [*said(None), "no message"]}, Length(4.0)),
    ({"prompt": "", "max_tokens": 5, "ignore_eos": True}, Length(0.0, 5.0, 5.0)),
    ({"prompt": "", "max_tokens": 5, "min_tokens": 9}, Length(0.0, 5.0, 5.0)),
    ({"prompt": "", "max_tokens": True, "min_tokens": "many"}, Length(0.0)),
    ({"prompt": 5}, None),
    ({"text": "abcd"}, None),
    ("abcd", None),
]


@pytest.mark.parametrize(("request_", "length"), LENGTHS)
def test_lengths_of_requests(request_: Any, length: Length | None) -> None:
    assert length_of(constant(request_)) == length


def test_a_request_too_large_for_a_message_counts_by_its_bytes() -> None:
    spilled = wire.Value(spilled=wire.TensorRef(1, 2, 0, 4000, "UINT8", (4000,)))
    assert length_of(spilled) == Length(1000.0, 0.0, math.inf)


def test_what_is_no_message_has_no_length() -> None:
    assert length_of(wire.Value(body=b"\xc1")) is None
