"""Short stories about the scheduler."""

import pytest

from dataflower.errors import Code, InvalidArgument
from dataflower.llm.blocks import BlockManager
from dataflower.llm.errors import KvExhausted, PromptTooLong, QueueFull
from dataflower.llm.params import SamplingParams
from dataflower.llm.scheduler import Limits, Scheduler
from dataflower.llm.sequence import FinishReason, Phase, Sequence


def made(blocks=100, **limits):
    return Scheduler(Limits(**{"step_tokens": 16, "sequences": 4, "context": 200} | limits), BlockManager(blocks, 4))


def add(scheduler, number, prompt, answer=50, **fields):
    tokens = [number * 1000 + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    limit = scheduler.limit(len(tokens), answer)
    sequence = Sequence(number, "m", tokens, SamplingParams(max_tokens=answer), limit, **fields)
    scheduler.submit(sequence)
    return sequence


def step(scheduler, token=7):
    """One step; what it computed as {sequence: (start, count)}."""
    plan = scheduler.schedule()
    scheduler.advance(plan, {c.sequence.number: token for c in plan.chunks if c.sample})
    for chunk in plan.chunks:
        if chunk.sequence.finish is not None:
            scheduler.finish(chunk.sequence, chunk.sequence.finish)
    scheduler.check()
    return {c.sequence.number: (c.start, c.count) for c in plan.chunks}


def test_decodes_go_on_beside_a_long_prompt():
    scheduler = made()
    add(scheduler, 1, 5)
    assert step(scheduler) == {1: (0, 5)}
    add(scheduler, 2, 40)
    assert step(scheduler) == {1: (5, 1), 2: (0, 15)}
    assert step(scheduler) == {1: (6, 1), 2: (15, 15)}
    assert step(scheduler) == {1: (7, 1), 2: (30, 10)}
    assert step(scheduler) == {1: (8, 1), 2: (40, 1)}


def test_a_known_prefix_is_not_computed_again():
    scheduler = made()
    first = add(scheduler, 1, list(range(10)), answer=1)
    step(scheduler)
    assert first.phase is Phase.FINISHED
    second = add(scheduler, 2, [*range(10), 99], answer=1)
    assert step(scheduler) == {2: (8, 3)}
    assert second.cached == 8
    third = add(scheduler, 3, list(range(8)), answer=1)  # the last token is always computed: its logits are wanted
    assert step(scheduler) == {3: (4, 4)}
    assert third.cached == 4


def test_scored_tokens_are_computed_though_they_are_known():
    scheduler = made()
    add(scheduler, 1, list(range(12)), answer=1)
    step(scheduler)
    scored = Sequence(2, "m", list(range(12)), SamplingParams(max_tokens=0, score_from=6), 12)
    scheduler.submit(scored)
    assert step(scheduler) == {2: (4, 8)}


def test_the_youngest_makes_room():
    scheduler = made(blocks=6)
    old = add(scheduler, 1, 8, answer=12)
    young = add(scheduler, 2, 8, answer=12)
    for _ in range(4):
        step(scheduler)
    while not young.preemptions:
        step(scheduler)
    assert old.phase is Phase.RUNNING
    assert young.phase is Phase.WAITING
    so_far = list(young.tokens)
    while young.phase is not Phase.FINISHED:
        assert step(scheduler)
    assert young.tokens[: len(so_far)] == so_far
    assert young.generated == 12


def test_nobody_overtakes_one_that_waits_for_room():
    scheduler = made(blocks=5, step_tokens=64)
    add(scheduler, 1, 12, answer=4)
    add(scheduler, 2, 16, answer=2)
    add(scheduler, 3, 2, answer=2)
    assert list(step(scheduler)) == [1]
    order = []
    while scheduler.running or scheduler.waiting:
        order += [number for number in step(scheduler) if number not in order]
    assert order == [1, 2, 3]


def test_an_open_prompt_is_computed_as_it_comes_but_for_its_last_token():
    scheduler = made()
    sequence = add(scheduler, 1, [], open=True)
    assert step(scheduler) == {}
    sequence.extend([1, 2, 3])
    assert step(scheduler) == {1: (0, 2)}
    assert step(scheduler) == {}
    sequence.extend([4])
    sequence.open = False
    assert step(scheduler) == {1: (2, 2)}
    assert sequence.generated == 1


def test_one_whose_prompt_does_not_come_holds_up_nobody():
    scheduler = made(blocks=4)
    idle = add(scheduler, 1, [1, 2, 3, 4, 5, 6, 7, 8], open=True)
    step(scheduler)
    add(scheduler, 2, 12, answer=1)
    assert list(step(scheduler)) == [2]
    assert idle.phase is Phase.WAITING
    idle.open = False
    assert step(scheduler) == {1: (4, 4)}  # one of its two blocks went to the other


def test_what_can_never_fit_is_refused():
    scheduler = made(blocks=5)
    with pytest.raises(PromptTooLong) as long:
        add(scheduler, 1, 200)
    assert long.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(KvExhausted) as exhausted:
        add(scheduler, 2, 20)
    assert exhausted.value.code is Code.RESOURCE_EXHAUSTED
    add(scheduler, 3, 19)
    assert scheduler.limit(19, None) == 20


def test_a_full_queue_says_when_to_come_back():
    scheduler = made(waiting=1)
    add(scheduler, 1, 3)
    with pytest.raises(QueueFull) as full:
        add(scheduler, 2, 3)
    assert full.value.retry_after_s == 1.0


def test_finishing_frees_at_once_and_twice_is_harmless():
    scheduler = made()
    running, waiting = add(scheduler, 1, 8), add(scheduler, 2, 8, open=True)
    step(scheduler)
    for sequence in (running, waiting):
        scheduler.finish(sequence, FinishReason.CANCELLED)
        scheduler.finish(sequence, FinishReason.STOP)
        assert sequence.finish is FinishReason.CANCELLED
    assert scheduler.blocks.statistics().used == 0
    assert not scheduler.running
    assert not scheduler.waiting


def test_ends_stops_and_limits():
    params = SamplingParams(max_tokens=9, min_tokens=2, stop_tokens=(5,))
    sequence = Sequence(1, "m", [1, 2], params, 5, frozenset({0}))
    assert sequence.accept(0) is None  # too early (and never chosen by the sampler)
    assert sequence.accept(5) is FinishReason.STOP
    assert sequence.stop_token == 5
    assert sequence.accept(3) is FinishReason.LENGTH
    deaf = Sequence(2, "m", [1], SamplingParams(ignore_eos=True), 9, frozenset({0}))
    assert deaf.accept(0) is None


def test_limits_must_leave_room_for_prompts():
    with pytest.raises(InvalidArgument, match="4 sequences"):
        Limits(step_tokens=4, sequences=4)


# --- a request weighs what its tokens weigh ---


def test_waiting_tokens_are_limited_not_only_requests():
    scheduler = made(waiting_tokens=60, sequences=1)
    add(scheduler, 1, 20)
    step(scheduler)  # it runs, so it does not wait
    add(scheduler, 2, 50)
    with pytest.raises(QueueFull, match="50 tokens wait already, and 11 more") as full:
        add(scheduler, 3, 11)
    assert full.value.code is Code.RESOURCE_EXHAUSTED
    add(scheduler, 4, 10)


def test_prompt_above_the_limit_is_taken_if_nobody_waits():
    scheduler = made(waiting_tokens=60)
    add(scheduler, 1, 100)
    assert scheduler.backlog == 100


def test_who_would_miss_the_objective_because_of_others_is_refused_and_told_when_to_come():
    scheduler = made(ttft_s=1.0)
    add(scheduler, 1, 150)  # nobody knows the pace yet
    scheduler.pace.note(100, 1.0)
    with pytest.raises(QueueFull, match=r"late by 0\.6") as late:
        add(scheduler, 2, 10)
    assert late.value.retry_after_s == pytest.approx(0.6)
    while scheduler.backlog:
        step(scheduler)
    add(scheduler, 3, 150)  # too long by itself, but it is nobody else's fault


def test_backlog_counts_prompts_and_not_those_that_decode():
    scheduler = made()
    add(scheduler, 1, 20)
    assert scheduler.backlog == 20
    step(scheduler)
    assert scheduler.backlog == 4
    step(scheduler)
    assert scheduler.backlog == 0
    add(scheduler, 2, 5, open=True)
    assert scheduler.backlog == 4  # the last token of an open prompt waits for the next


def long_ones(used):
    """Two places, taken by answers of up to 100 tokens, a step a tenth of a second; answers use a share of theirs."""
    scheduler = made(sequences=2, ttft_s=3.0)
    add(scheduler, 1, 5, answer=100)
    add(scheduler, 2, 5, answer=100)
    step(scheduler)
    scheduler.pace.note(0, 0.1)
    scheduler.pace.note(100, 1.0)
    if used is not None:
        scheduler.pace.ended(int(100 * used), 100)
    return scheduler


def test_who_waits_for_a_place_behind_long_answers_is_refused():
    scheduler = long_ones(used=1.0)
    with pytest.raises(QueueFull, match=r"no place is free for 9\.\d") as full:
        add(scheduler, 3, 5)
    assert full.value.retry_after_s == pytest.approx(9.9 + 0.05 - 3.0)
    for _ in range(75):
        step(scheduler)
    add(scheduler, 3, 5, answer=2)  # 24 tokens are left of each: 2.4 s
    add(scheduler, 4, 5, answer=100)
    with pytest.raises(QueueFull, match=r"no place is free for 2\.6"):
        add(scheduler, 5, 40, answer=2)  # behind the third, in its place; the prompts take half a second


def test_answers_are_as_long_as_those_before_were():
    add(long_ones(used=0.1), 3, 5)
    add(long_ones(used=None), 3, 5)  # nobody knows yet


def test_a_place_that_is_free_is_not_waited_for():
    scheduler = long_ones(used=1.0)
    scheduler.finish(scheduler.running[0], FinishReason.CANCELLED)
    add(scheduler, 3, 5)
    assert scheduler.pace.used == 1.0  # who was stopped says nothing of how long answers get


def test_pace_follows_steps_with_prompts_only():
    scheduler = made()
    scheduler.pace.note(8, 5.0)
    assert scheduler.pace.seconds(100) == 0.0
    for _ in range(50):
        scheduler.pace.note(200, 1.0)
    assert scheduler.pace.seconds(100) == pytest.approx(0.5)


def test_a_step_in_which_all_decode_is_steady_though_others_wait_for_a_place():
    scheduler = made(sequences=2)
    add(scheduler, 1, 5)
    add(scheduler, 2, 5)
    assert not scheduler.schedule().steady  # prompts
    step(scheduler)
    add(scheduler, 3, 5)
    for length in range(5, 20):  # blocks are filled and taken meanwhile
        assert scheduler.schedule().steady
        assert step(scheduler) == {1: (length, 1), 2: (length, 1)}
    scheduler.finish(scheduler.running[0], FinishReason.CANCELLED)
    assert not scheduler.schedule().steady
    assert step(scheduler) == {2: (20, 1), 3: (0, 5)}


def test_a_step_that_lacks_blocks_is_not_steady():
    scheduler = made(blocks=4)
    add(scheduler, 1, 7)
    add(scheduler, 2, 7)
    step(scheduler)
    assert scheduler.schedule().steady
    assert step(scheduler) == {1: (7, 1), 2: (7, 1)}
    assert step(scheduler) == {1: (8, 1)}  # the youngest makes room


def noted(scheduler, times, steps=8):
    for answers, seconds in times.items():
        for _ in range(steps):
            scheduler.pace.note(0, seconds, answers)


def test_one_who_would_slow_the_others_beyond_their_objective_waits_for_a_place():
    scheduler = made(tpot_s=0.02)
    noted(scheduler, {1: 0.015, 2: 0.018, 3: 0.023})
    for number in (1, 2, 3):
        add(scheduler, number, 3, answer=4)
    assert list(step(scheduler)) == [1, 2]
    waited = 0
    while 3 not in (ran := step(scheduler)):
        waited += 1
        assert list(ran) == [1, 2]
    assert waited == 3
    assert scheduler.pace.further.of(2) == pytest.approx(0.018)


def test_what_was_not_tried_is_tried_one_by_one():
    scheduler = made(tpot_s=0.1)
    noted(scheduler, {1: 0.01})
    assert scheduler.places == 2
    noted(scheduler, {2: 0.02})
    assert scheduler.places == 3
    assert made().places == 4, "without an objective"


def test_a_machine_that_is_quick_again_is_used_again():
    scheduler = made(tpot_s=0.02)
    noted(scheduler, {1: 0.010, 2: 0.012, 3: 0.014})
    noted(scheduler, {3: 0.028}, steps=40)
    assert scheduler.places == 1, "half as fast at all sizes"
    noted(scheduler, {1: 0.010}, steps=40)
    assert scheduler.places == 4


def test_what_prompts_add_to_steps_counts_and_fades():
    scheduler = made(tpot_s=0.02)
    noted(scheduler, {1: 0.010, 2: 0.012})
    for _ in range(40):
        scheduler.pace.note(500, 0.112, 2)
    assert scheduler.places == 1
    noted(scheduler, {2: 0.012}, steps=100)
    assert scheduler.places == 3


def test_who_waits_for_a_place_too_long_is_refused():
    scheduler = made(tpot_s=0.02, ttft_s=1.0)
    noted(scheduler, {1: 0.015, 2: 0.025})
    scheduler.pace.ended(50, 50)
    add(scheduler, 1, 3, answer=100)
    step(scheduler)
    with pytest.raises(QueueFull, match="no place is free") as full:
        add(scheduler, 2, 3)
    assert full.value.retry_after_s > 0.4
