"""The scheduler under any mix of sequences: budgets kept, nobody starves, everything comes back."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dataflower.llm.blocks import BlockManager
from dataflower.llm.params import SamplingParams
from dataflower.llm.scheduler import Limits, Scheduler
from dataflower.llm.sequence import FinishReason, Phase, Sequence

SIZE = 4


@dataclass(frozen=True)
class Job:
    prompt: int
    answer: int
    pieces: int
    """The prompt comes in so many pieces (1: whole)."""
    cancel_after: int | None
    """Steps after which its reader leaves."""
    root: str


JOBS = st.lists(
    st.builds(
        Job,
        prompt=st.integers(1, 30),
        answer=st.integers(1, 12),
        pieces=st.integers(1, 3),
        cancel_after=st.none() | st.integers(0, 12),
        root=st.sampled_from("ab"),
    ),
    min_size=1,
    max_size=8,
)


@given(jobs=JOBS, budget=st.integers(6, 20), most=st.integers(1, 4), spare=st.integers(0, 8))
def test_everything_comes_to_its_end_within_the_budgets(jobs, budget, most, spare):
    blocks = BlockManager(11 + spare, SIZE)  # 42 tokens: the longest alone just fits
    limits = Limits(step_tokens=max(budget, most + 1), sequences=most, context=44)
    scheduler = Scheduler(limits, blocks)
    live: dict[int, tuple[Sequence, Job, int]] = {}
    for number, job in enumerate(jobs):
        first = job.prompt if job.pieces == 1 else job.prompt // job.pieces
        params = SamplingParams(max_tokens=job.answer)
        sequence = Sequence(number, job.root, [1] * first, params, 0, open=job.pieces > 1)
        sequence.limit = scheduler.limit(job.prompt, job.answer)
        scheduler.submit(sequence)
        live[number] = (sequence, job, 0)
    kv: dict[int, int] = {}
    steps = 0
    while live:
        steps += 1
        assert steps < 2000, "no progress"
        for number, (sequence, job, _) in list(live.items()):
            if job.cancel_after is not None and steps > job.cancel_after:
                scheduler.finish(sequence, FinishReason.CANCELLED)
                kv.pop(number, None)
                del live[number]
            elif sequence.open and steps % 2:
                rest = min(job.prompt - len(sequence.tokens), max(1, job.prompt // job.pieces))
                sequence.extend([1] * rest)
                sequence.open = len(sequence.tokens) < job.prompt
        oldest = min((s for s in scheduler.running if s.ready > 0), key=lambda s: s.number, default=None)
        step = scheduler.schedule()
        scheduler.check()

        assert sum(chunk.count for chunk in step.chunks) <= limits.step_tokens
        assert len({chunk.sequence.number for chunk in step.chunks}) == len(step.chunks)
        decodes = [chunk.sequence.decoding for chunk in step.chunks if chunk.sequence.generated]
        assert decodes == sorted(decodes, reverse=True)  # those that decode come first
        for sequence in step.preempted:
            assert sequence.phase is Phase.WAITING
            kv.pop(sequence.number, None)
        for admitted in step.admitted:
            assert admitted.cached == len(admitted.blocks) * SIZE < len(admitted.sequence.tokens)
            kv[admitted.sequence.number] = admitted.cached
            overtaken = [s for s in scheduler.waiting if s.eager and s.number < admitted.sequence.number]
            assert not overtaken
        for chunk in step.chunks:
            sequence = chunk.sequence
            assert chunk.start == kv[sequence.number] == sequence.computed  # in order, without gaps
            assert chunk.sample == (not sequence.open and chunk.start + chunk.count == len(sequence.tokens))
            assert len(sequence.table.blocks) * SIZE >= chunk.start + chunk.count
            kv[sequence.number] += chunk.count
        scheduler.advance(step, {c.sequence.number: 5 for c in step.chunks if c.sample})
        if oldest is not None:
            assert any(chunk.sequence is oldest for chunk in step.chunks)  # it makes progress in every step
        for chunk in step.chunks:
            if chunk.sequence.finish is not None:
                sequence, job, _ = live.pop(chunk.sequence.number)
                assert sequence.finish is FinishReason.LENGTH
                assert sequence.generated == job.answer
                scheduler.finish(sequence, sequence.finish)
                kv.pop(sequence.number)
        scheduler.check()
    assert blocks.available == blocks.count
    assert not scheduler.running
    assert not scheduler.waiting
