"""What a plan tells the core: how the machines of each stage collect batches, and what was promised.

The planner decides it, the host hands it over (`events.PlanChanged`), dispatch and admission obey it.
"""

from __future__ import annotations

import enum
import math

from msgspec import Struct


class Replan(enum.StrEnum):
    """Whether a plan is made anew when the traffic is not what it was made for. Up to the host; the core obeys."""

    OFF = "off"
    DRY_RUN = "dry-run"
    ON = "on"


class GroupPlan(Struct, frozen=True):
    """A tuple of a plan: `replicas` containers that run batches of up to `batch` tasks, each within `duration_s`.

    `rate`: tasks a second that it is to serve. `hardware`: the kind of device it was planned for. `points`: batch
    sizes, rising, and the seconds that they were profiled with; empty if nobody knows.
    """

    batch: int
    replicas: int
    duration_s: float
    rate: float
    hardware: str = ""
    points: tuple[tuple[int, float], ...] = ()

    def expected_s(self, tasks: int) -> float | None:
        """How long a run of so many tasks should take, straight between points; None if nobody knows.

        Never more than a full batch, which is what the plan counts on.
        """
        if tasks >= self.batch:
            return self.duration_s
        before: tuple[int, float] | None = None
        for size, seconds in self.points:
            if size >= tasks:
                if before is None or size == tasks:
                    return min(seconds, self.duration_s)
                share = (tasks - before[0]) / (size - before[0])
                return min(before[1] + (seconds - before[1]) * share, self.duration_s)
            before = (size, seconds)
        return None


class Length(Struct, frozen=True):
    """Of a request to a language model. `prompt`: tokens; `least` and `most`: tokens of the answer (inf: it does not
    say).
    """

    prompt: float
    least: float = 0.0
    most: float = math.inf


class TokenPlan(Struct, frozen=True):
    """What requests take of a container of a language model.

    Attributes:
        prompt_s: seconds of its time that a token of a prompt takes.
        answer_s: the same of an answer: a share of a step, which makes one token for each of many sequences.
        token_s: from one token of an answer to the next.
        prompt: tokens of a usual prompt.
        answer: tokens of a usual answer.
        longest: tokens of an answer that the plan's latency counts on.
        ttft_s: most from when the stage has its prompt until the first token; 0: no limit.
    """

    prompt_s: float
    answer_s: float
    token_s: float
    prompt: float
    answer: float
    longest: float
    ttft_s: float = 0.0

    def weight(self, length: Length) -> float:
        """A request as so many usual ones, by the time that it takes of a container.

        Few answers are as long as they may be: one is taken to be of the usual length, within what the request allows.
        """
        usual = self.prompt_s * self.prompt + self.answer_s * self.answer
        own = self.prompt_s * length.prompt + self.answer_s * min(max(self.answer, length.least), length.most)
        return own / usual if usual > 0 else 1.0

    def longer_s(self, length: Length) -> float:
        """By how much its answer takes longer than the plan counts on, as far as the request says so."""
        return max(0.0, length.least - self.longest) * self.token_s


class StageDispatch(Struct, frozen=True):
    """How one stage is run.

    Attributes:
        stage: its name.
        groups: best ranked first.
        until_s: seconds after the arrival of its invocation by which a task should be done with, the stages before it
            included; batches are cut in time for that.
        worst_s: worst-case latency of the stage itself.
        ranked: the best ranked group with a free container collects all that comes (TC); else each group collects
            its share of the tasks, dealt out one by one and as evenly as whole tasks can be (GROUP).
        dummy_rate: requests a second that the plan counts on and nobody sends: they fill up a batch, so it is cut
            before real tasks would have filled it. Under load real tasks take their places.
        factor: tasks for one invocation, on the average.
        eager: start with fewer tasks than a full batch if that keeps the containers calm; a more urgent task that comes
            just after that waits for one run more, which the plan must leave time for.
        behind: the stages just before it that let tasks overtake each other: tasks that come before older ones still
            under way there wait for them (`turnstile`).
        from_s: but only until so many seconds after the arrival of their invocation, when they are to be there.
        prewarm: a task that waits for the stage's weights misses the plan: they are kept in memory.
        tokens: of a language model, whose tasks differ by their tokens.
    """

    stage: str
    groups: tuple[GroupPlan, ...]
    until_s: float
    worst_s: float
    ranked: bool = False
    dummy_rate: float = 0.0
    factor: float = 1.0
    eager: bool = False
    behind: tuple[str, ...] = ()
    from_s: float = 0.0
    prewarm: bool = False
    tokens: TokenPlan | None = None

    @property
    def rate(self) -> float:
        """Tasks a second that its groups are to collect, dummies included."""
        return sum(g.rate for g in self.groups)

    @property
    def capacity(self) -> float:
        """Tasks a second that its containers can serve."""
        return sum(g.replicas * g.batch / g.duration_s for g in self.groups)


class DispatchPlan(Struct, frozen=True):
    """A plan as far as the engine obeys it. `rate`: invocations a second that it was made for.

    `admission`: refuse invocations that can't keep the SLO any more, so that the others do.
    """

    slo_s: float
    rate: float
    stages: tuple[StageDispatch, ...]
    admission: bool = True
