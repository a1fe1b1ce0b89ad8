"""Which tokens the next step of the model computes.

Iteration-level scheduling (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, OSDI 2024): each step decodes one
token of every sequence that is past its prompt, and fills what is left of the token budget with pieces of prompts.
The older sequence always goes
first: where blocks are short the youngest is preempted (its blocks are taken, and it is computed again later, mostly
    out of the prefix cache). So the oldest one makes progress in every step, and nobody starves.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from dataflower.errors import InvalidArgument
from dataflower.llm.blocks import BlockManager, Published
from dataflower.llm.errors import KvExhausted, PromptTooLong, QueueFull
from dataflower.llm.pace import Pace
from dataflower.llm.sequence import FinishReason, Phase, Sequence

SOONEST_S = 0.05
"""Nobody is told to come back sooner than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a runner may take on.

    Attributes:
        step_tokens: Tokens that one step computes at most.
        sequences: Sequences that run at a time.
        waiting: Sequences that wait at most, besides.
        waiting_tokens: Tokens that they have at most, all together; None = as many as they have.
        ttft_s: Objective for the first token: who would miss it because of those before is refused. None = nobody is.
        tpot_s: Objective for each further token, on the average of an answer: who would have the others miss it, by
            what steps of so many answers were measured to take, waits for a place. None = nobody does.
        context: Tokens of one sequence, prompt and answer.
    """

    step_tokens: int = 512
    sequences: int = 16
    waiting: int = 1024
    waiting_tokens: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    context: int = 8192

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.step_tokens <= self.sequences:
            raise InvalidArgument(
                f"a step of {self.step_tokens} tokens can't hold {self.sequences} sequences and a piece of a prompt"
            )


_ENDED = frozenset({FinishReason.STOP, FinishReason.LENGTH})
"""Answers as long as they wanted to be."""


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Tokens `start` to `start + count` of a sequence; `sample`: a token is to be chosen after the last of them."""

    sequence: Sequence
    start: int
    count: int
    sample: bool


@dataclass(frozen=True, slots=True)
class Admitted:
    """A sequence starts to run with `cached` tokens from these blocks."""

    sequence: Sequence
    blocks: tuple[int, ...]
    cached: int


@dataclass(frozen=True, slots=True)
class Step:
    """What to do, in order: forget the preempted, load the cached, compute the chunks (those that decode first)."""

    preempted: tuple[Sequence, ...]
    admitted: tuple[Admitted, ...]
    chunks: tuple[Chunk, ...]
    steady: bool = False
    """Each chunk is the newest token of a sequence past its prompt, and a token is to be chosen after it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks of a sequence that are to be stored, since others may want them."""

    sequence: Sequence
    blocks: tuple[Published, ...]


class Scheduler:
    """Sequences that wait and run. `schedule` gives a step, `advance` takes what came of it."""

    def __init__(self, limits: Limits, blocks: BlockManager) -> None:
        self.limits = limits
        self.blocks = blocks
        self.running: list[Sequence] = []
        """By age, like `waiting`."""
        self.waiting: list[Sequence] = []
        self.pace = Pace()
        """To be told how long steps take."""

    @property
    def backlog(self) -> int:
        """Tokens of prompts that are to be computed before a newcomer's: the weight of a request is its tokens."""
        return sum(s.ready for s in (*self.running, *self.waiting) if not s.decoding and s.ready > 0)

    @property
    def places(self) -> int:
        """Sequences that may run at a time now: all that there are, or as many as keep the objective for tokens."""
        cap, tpot_s = self.limits.sequences, self.limits.tpot_s
        return cap if tpot_s is None else self.pace.further.most(tpot_s, cap)

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence on. Raises PromptTooLong, KvExhausted, QueueFull."""
        self.check_length(sequence)
        self._check_room(len(sequence.tokens))
        self._wait(sequence)

    def _check_room(self, tokens: int) -> None:
        limits, backlog = self.limits, self.backlog
        if len(self.waiting) >= limits.waiting:
            raise QueueFull(f"{len(self.waiting)} sequences wait already", retry_after_s=self._soon(backlog))
        waiting = sum(len(sequence.tokens) for sequence in self.waiting)
        if limits.waiting_tokens is not None and self.waiting and waiting + tokens > limits.waiting_tokens:
            message = f"{waiting} tokens wait already, and {tokens} more are above the limit of {limits.waiting_tokens}"
            raise QueueFull(message, retry_after_s=self._soon(backlog))
        if limits.ttft_s is None:
            return
        place_s = self.pace.writing_s(self._until_place())
        if backlog or place_s:
            late = place_s + self.pace.seconds(backlog + tokens) - limits.ttft_s
            if late > 0:
                message = f"its first token would be late by {late:.3f} s: {backlog} tokens are to be computed before"
                message += f", and no place is free for {place_s:.3f} s" if place_s else ""
                raise QueueFull(message, retry_after_s=max(late, SOONEST_S))

    def _until_place(self) -> int:
        """Tokens that may be written until a newcomer would get a place, of whoever gives it up; 0 if there is one.

        An answer weighs as many as its request allows: who asks for long ones before keeps others from their place.
        """
        most = self.places
        free = max(0, most - len(self.running))
        if len(self.waiting) < free:
            return 0
        left = [max(1, s.limit - len(s.tokens)) for s in self.running]
        places = sorted(left)[-most:] + [0] * free  # of more than there are to be, those that end first leave none
        heapq.heapify(places)
        for sequence in self.waiting:
            heapq.heapreplace(places, places[0] + max(1, sequence.limit - len(sequence.tokens)))
        return places[0]

    def _soon(self, tokens: int) -> float:
        return max(self.pace.seconds(tokens), SOONEST_S) if self.pace.tokens_per_s else 1.0

    def check_length(self, sequence: Sequence) -> None:
        """Whether a sequence fits, by itself. Raises PromptTooLong, KvExhausted."""
        length, room = len(sequence.tokens), self.blocks.count * self.blocks.size
        wanted = length + (0 if sequence.params.max_tokens == 0 else 1)
        if wanted > self.limits.context:
            raise PromptTooLong(f"the prompt has {length} tokens; the context of {self.limits.context} must hold it")
        if wanted > room:
            raise KvExhausted(f"the prompt has {length} tokens; all blocks together hold {room}")

    def limit(self, prompt: int, max_tokens: int | None) -> int:
        """How long a sequence may grow."""
        room = min(self.limits.context, self.blocks.count * self.blocks.size)
        return room if max_tokens is None else min(room, prompt + max_tokens)

    def schedule(self) -> Step:
        """Choose what the next step computes."""
        return self._steady() or self._choose()

    def _steady(self) -> Step | None:
        """The step of which there are most: everybody decodes, nobody may join, and there are blocks. Else None."""
        if not self.running or (self.waiting and len(self.running) < self.places):
            return None
        chunks, size = [], self.blocks.size
        for sequence in self.running:
            computed, table = sequence.computed, sequence.table
            if len(sequence.tokens) != computed + 1 or computed < sequence.prompt or sequence.open:
                return None
            assert table is not None
            if computed >= len(table.blocks) * size and not self.blocks.grow(table, computed + 1):
                return None
            chunks.append(Chunk(sequence, computed, 1, True))
        return Step((), (), tuple(chunks), steady=True)

    def _choose(self) -> Step:
        planned: dict[int, Chunk] = {}
        preempted: list[Sequence] = []
        budget = self.limits.step_tokens
        everyone_fits = True
        # Decodes first: a prompt must not hold up those who are being read.
        for sequence in sorted(self.running, key=_prompting):
            count = min(budget, sequence.ready)
            if sequence.phase is not Phase.RUNNING or count < 1:
                continue
            before = len(preempted)
            if self._make_room(sequence, sequence.computed + count, planned, preempted):
                planned[sequence.number] = _chunk(sequence, count)
                budget -= count
            else:
                everyone_fits = False
            if len(preempted) > before:  # some of what was planned is not
                budget = self.limits.step_tokens - sum(chunk.count for chunk in planned.values())
        admitted = list(self._admit(budget, planned)) if everyone_fits and not preempted else []
        while not planned and self.running and any(s.eager for s in self.waiting):
            # Those that run wait for more of their prompts, and hold what others could use meanwhile.
            idle = self.running[-1]
            idle.parked = len(idle.tokens)
            preempted.append(idle)
            self._preempt(idle)
            admitted = list(self._admit(budget, planned))
        if admitted:  # one that comes back may have all but its newest token in the cache: it decodes at once
            chunks = sorted(planned.values(), key=lambda chunk: _prompting(chunk.sequence))
        else:
            chunks = list(planned.values())
        return Step(tuple(preempted), tuple(admitted), tuple(chunks))

    def advance(self, step: Step, chosen: Mapping[int, int]) -> list[Stored]:
        """Take the outcome of a step: `chosen` holds the token that follows each chunk that asked for one.

        Sequences that were finished meanwhile are passed over. Gives the blocks to store; those of a sequence that is
        over now are released afterwards by `finish`.
        """
        stored = []
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.phase is not Phase.RUNNING:
                continue
            assert sequence.table is not None
            sequence.computed = chunk.start + chunk.count
            if sequence.computed >= (sequence.table.published + 1) * self.blocks.size:
                fresh = self.blocks.publish(sequence.table, sequence.tokens, sequence.computed)
                if fresh:
                    stored.append(Stored(sequence, tuple(fresh)))
            if chunk.sample:
                token = chosen.get(sequence.number)
                sequence.finish = FinishReason.LENGTH if token is None else sequence.accept(token)
        return stored

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """The sequence is over: its blocks are free at once. Idempotent."""
        if sequence.phase is Phase.FINISHED:
            return
        (self.running if sequence.phase is Phase.RUNNING else self.waiting).remove(sequence)
        if sequence.table is not None:
            self.blocks.release(sequence.table)
            sequence.table = None
        if reason in _ENDED:
            self.pace.ended(sequence.generated, sequence.limit - sequence.prompt)
        sequence.phase, sequence.finish = Phase.FINISHED, reason

    def check(self) -> None:
        """Hold all books against each other. Raises AssertionError."""
        self.blocks.check([s.table for s in (*self.running, *self.waiting) if s.table is not None])
        assert all(s.phase is Phase.RUNNING and s.table is not None for s in self.running)
        assert all(s.phase is Phase.WAITING and s.table is None for s in self.waiting)
        assert len(self.running) <= self.limits.sequences

    def _admit(self, budget: int, planned: dict[int, Chunk]) -> Iterator[Admitted]:
        places, most = self.places, self.limits.sequences
        busy = sum(sequence.ready > 0 for sequence in self.running)
        for sequence in list(self.waiting):
            if budget < 1 or busy >= places or len(self.running) >= most:
                return
            if not sequence.eager:  # an open prompt of which nothing came: others need not wait for it
                continue
            table = self.blocks.attach(sequence.root, sequence.tokens, _cacheable(sequence))
            if not self.blocks.can_grow(table, len(sequence.tokens)):
                self.blocks.release(table)
                return  # nobody overtakes it, or it might wait for ever
            self.waiting.remove(sequence)
            sequence.table, sequence.phase = table, Phase.RUNNING
            sequence.computed = table.published * self.blocks.size
            if not sequence.preemptions:
                sequence.cached = sequence.computed
            bisect.insort(self.running, sequence, key=_age)
            count = min(budget, sequence.ready)
            self.blocks.grow(table, sequence.computed + count)
            planned[sequence.number] = _chunk(sequence, count)
            budget -= count
            busy += 1
            yield Admitted(sequence, tuple(table.blocks[: table.published]), sequence.computed)

    def _make_room(self, sequence: Sequence, tokens: int, planned: dict[int, Chunk], preempted: list[Sequence]) -> bool:
        """Let the sequence grow, if need be at the cost of younger ones; False if it has to wait itself."""
        assert sequence.table is not None
        while not self.blocks.grow(sequence.table, tokens):
            victim = self.running[-1]
            planned.pop(victim.number, None)
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        assert sequence.table is not None
        self.running.remove(sequence)
        self.blocks.release(sequence.table)
        sequence.table = None
        sequence.computed = 0
        sequence.preemptions += 1
        self._wait(sequence)

    def _wait(self, sequence: Sequence) -> None:
        sequence.phase = Phase.WAITING
        bisect.insort(self.waiting, sequence, key=_age)


def _age(sequence: Sequence) -> int:
    return sequence.number


def _prompting(sequence: Sequence) -> bool:
    return not sequence.decoding


def _chunk(sequence: Sequence, count: int) -> Chunk:
    last = sequence.computed + count == len(sequence.tokens)
    return Chunk(sequence, sequence.computed, count, sample=last and not sequence.open)


def _cacheable(sequence: Sequence) -> int:
    """How much of the prompt may come from the cache: not the last token, nor any whose logits are asked for."""
    scored = sequence.params.score_from
    return min(len(sequence.tokens) - 1, len(sequence.tokens) if scored is None else scored - 1)
