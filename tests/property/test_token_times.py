"""The objective for further tokens under any machine and any mix of sequences: kept as far as it was measured, and
nobody waits for ever."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dataflower.llm.blocks import BlockManager
from dataflower.llm.params import SamplingParams
from dataflower.llm.scheduler import Limits, Scheduler
from dataflower.llm.sequence import Phase, Sequence
from dataflower.llm.token_time import SURE

MOST = 8


@dataclass(frozen=True)
class Job:
    prompt: int
    answer: int
    after: int
    """Steps before it comes."""


@st.composite
def machines(draw: st.DrawFn) -> list[float]:
    """Seconds of a step by the number of answers in it, rising; for none at all the first."""
    grown = draw(st.lists(st.floats(0.0, 0.01), min_size=MOST, max_size=MOST))
    first = draw(st.floats(0.001, 0.02))
    return [first, *(first + sum(grown[: n + 1]) for n in range(MOST))]


JOBS = st.lists(
    st.builds(Job, prompt=st.integers(1, 30), answer=st.integers(2, 40), after=st.integers(0, 60)),
    min_size=1,
    max_size=16,
)


@given(machine=machines(), jobs=JOBS, tpot_s=st.floats(0.001, 0.08), prompt_s=st.floats(0.0, 0.002))
def test_as_many_run_as_keep_the_time_of_a_token(
    machine: list[float], jobs: list[Job], tpot_s: float, prompt_s: float
) -> None:
    fit = max([n for n in range(1, MOST + 1) if machine[n] <= tpot_s], default=1)
    scheduler = Scheduler(Limits(step_tokens=32, sequences=MOST, context=128, tpot_s=tpot_s), BlockManager(400, 4))
    for _ in range(SURE):
        scheduler.pace.note(0, machine[1], 1)  # of a warm-up; without one nobody is kept waiting
    sequences, taken, seen, steps = [], 0, [0] * (MOST + 1), 0
    coming = sorted(enumerate(jobs), key=lambda pair: pair[1].after)
    while coming or scheduler.running or scheduler.waiting:
        steps += 1
        assert steps < 5000, "no progress"
        while coming and (coming[0][1].after <= steps or not (scheduler.running or scheduler.waiting)):
            number, job = coming.pop(0)
            taken += 1
            params = SamplingParams(max_tokens=job.answer)
            sequence = Sequence(taken, number, [1] * job.prompt, params, job.prompt + job.answer)
            scheduler.submit(sequence)
            sequences.append(sequence)
        step = scheduler.schedule()
        scheduler.check()
        assert step.chunks, "somebody may always go on"
        running = len(scheduler.running)
        if step.admitted:
            assert running <= fit + 1, "what was never tried is tried one by one"
            assert running <= fit or seen[running] < SURE, "it is known to be too much"
        decoding = sum(chunk.sequence.decoding for chunk in step.chunks)
        prompts = sum(chunk.count for chunk in step.chunks if not chunk.sequence.decoding)
        seen[decoding] += not prompts
        scheduler.advance(step, {chunk.sequence.number: 7 for chunk in step.chunks if chunk.sample})
        scheduler.pace.note(prompts, machine[decoding] + prompts * prompt_s, decoding)
        for chunk in step.chunks:
            if chunk.sequence.finish is not None:
                scheduler.finish(chunk.sequence, chunk.sequence.finish)
    assert all(sequence.phase is Phase.FINISHED for sequence in sequences)


@given(machine=machines(), tpot_s=st.floats(0.001, 0.08), cap=st.integers(1, MOST))
def test_more_time_never_leaves_fewer_places(machine: list[float], tpot_s: float, cap: int) -> None:
    scheduler = Scheduler(Limits(sequences=cap, tpot_s=tpot_s), BlockManager(10, 4))
    assert scheduler.places == cap, "nothing was measured"
    for size in range(1, cap + 1):
        for _ in range(SURE):
            scheduler.pace.note(0, machine[size], size)
    further = scheduler.pace.further
    places = [further.most(tpot_s * factor, cap) for factor in (0.5, 1.0, 2.0, 100.0)]
    assert places == sorted(places)
    assert places[0] >= 1
    assert places[-1] == cap
    assert scheduler.places == max([n for n in range(1, cap + 1) if machine[n] <= tpot_s], default=1)
