"""What the tokens of a stage cost: prompts of rising length, and steps with rising numbers of sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dataflower.clock import Clock
from dataflower.loadgen.profiling.measure import Effort, ProfilingHost
from dataflower.loadgen.profiling.steady import LEAST, Summary, is_steady, summary
from dataflower.planner.measured import DecodePoint, Lengths, PrefillPoint, TokenPoint, TokensProfile
from dataflower.spec.function import Kind, Port, PortType
from dataflower.spec.workflow import INPUTS, Edge, Input, Output, PortRef, Scaling, Stage, Workflow

PROBE = "dataflower.loadgen.profiling.token_probe:TokenProbe"
SHORT = 64
"""Tokens that sequences hold while numbers of them are compared."""
LONG = 1024
"""Tokens that one of them holds to see what looking back costs."""
PROMPTS = (16, 64, 256, 512)
STEPS = 12
"""Steps of one series."""

P = TypeVar("P", bound=TokenPoint)
OnPoint = Callable[[str], None]
"""`on_point(what is measured)`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which prompts and steps to measure: numbers of tokens; (sequences, tokens that each holds)."""

    prompts: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Of points."""
        return len(self.prompts) + len(self.steps)


def shape_of(limits: Mapping[str, Any], longest: float) -> Shape:
    """What is worth measuring for a runner with these limits, and prompts of up to `longest` tokens in real runs.

    Nothing beyond twice the longest prompt, and nothing for which there is no room.
    """
    context, room = int(limits["context"]), int(limits["kv_tokens"])
    most = min(context, room) - 2 * STEPS
    top = 2 ** math.ceil(math.log2(max(PROMPTS[-1], 2 * longest)))
    prompts = {size for size in (*PROMPTS, *_powers(1024, top)) if size < most}
    sequences = int(limits["sequences"])
    batches = sorted({size for size in _powers(1, sequences) if size < sequences} | {sequences})
    batches = [size for size in batches if size * (SHORT + 3 * STEPS) < room]
    long = min(LONG, most // 2)
    steps = [(size, SHORT) for size in batches]
    steps += [(size, held) for size, held in ((1, long), (batches[-1], 4 * SHORT)) if 2 * SHORT < held < most // size]
    return Shape(tuple(sorted(prompts or {max(1, most // 2), most})), tuple(dict.fromkeys(steps)))


def _powers(first: int, last: int) -> list[int]:
    found = [first]
    while found[-1] * 2 <= last:
        found.append(found[-1] * 2)
    return [size for size in found if size <= last]


class TokenBench:
    """A container with the stage's model, to be given orders."""

    def __init__(self, host: ProfilingHost, stage: Stage, clock: Clock) -> None:
        self._host, self._clock = host, clock
        self._name = f"tokens-{stage.name.replace('/', '-')}"
        self._workflow = _probing(stage, self._name)

    async def __aenter__(self) -> TokenBench:
        await self._host.apply(self._workflow, self._name)
        await self._host.wait_ready(self._name)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._host.delete(self._name)

    async def order(self, **order: Any) -> dict[str, Any]:
        """Have the probe do something."""
        invocation = await self._host.invoke(self._name, {"order": order})
        found: dict[str, Any] = (await invocation.result())["out"]
        return found

    async def prompt(self, tokens: int, effort: Effort) -> Summary:
        """A prompt of so many tokens, again and again until its time is steady."""
        await self.order(prefill=tokens)
        return await self._series(effort, prefill=tokens)

    async def steps(self, batch: int, context: int, effort: Effort) -> Summary:
        """Steps of so many sequences that hold so many tokens each."""
        return await self._series(effort, decode=batch, context=context, steps=STEPS)

    async def _series(self, effort: Effort, **order: Any) -> Summary:
        samples: list[float] = []
        begun = self._clock.monotonic()
        while True:
            samples += (await self.order(**order))["seconds"]
            late = self._clock.monotonic() - begun > effort.limit_s
            if (len(samples) >= LEAST and is_steady(samples)) or (late and len(samples) >= min(3, LEAST)):
                return summary(samples)


async def measure_tokens(
    host: ProfilingHost,
    stage: Stage,
    answers: Sequence[tuple[int, int]],
    tasks: float,
    effort: Effort,
    *,
    on_point: OnPoint = lambda what: None,
    clock: Clock,
) -> TokensProfile:
    """Prompts and steps of a stage, alone on this machine with one container.

    Args:
        host: in this process.
        stage: one that keeps a runner of language models.
        answers: tokens of prompt and answer of each answer in real runs, at least one.
        tasks: of the stage in those runs.
        effort: most time for each point.
        on_point: told what comes next.
        clock: for the time that is spent.

    Raises:
        InvocationFailed: user code failed.
    """
    async with TokenBench(host, stage, clock) as bench:
        limits = await bench.order()
        shape = shape_of(limits, max(prompt for prompt, _ in answers))
        prefill = []
        for size in shape.prompts:
            on_point(f"prompts of {size} tokens")
            prefill.append(PrefillPoint(tokens=size, **_point(await bench.prompt(size, effort))))
        decode = []
        for batch, context in shape.steps:
            on_point(f"{batch} answers at a time, {context} tokens each")
            decode.append(
                DecodePoint(batch=batch, context=context, **_point(await bench.steps(batch, context, effort)))
            )
    return TokensProfile.model_validate(
        {
            **limits,
            "sequences": max(point.batch for point in decode),
            "generations": len(answers) / tasks if tasks else 1.0,
            "prompt": _lengths([prompt for prompt, _ in answers]),
            "output": _lengths([max(1, answer) for _, answer in answers]),
            "prefill": risen(prefill, lambda one, other: one.tokens <= other.tokens),
            "decode": risen(decode, lambda one, other: one.batch <= other.batch and one.context <= other.context),
        }
    )


async def measure_tokens_beside(
    host: ProfilingHost,
    stage: Stage,
    known: TokensProfile,
    effort: Effort,
    *,
    on_point: OnPoint = lambda what: None,
    clock: Clock,
) -> TokensProfile:
    """The same again while others keep the machine busy; nothing counts as quicker in company than alone.

    Raises:
        InvocationFailed: user code failed.
    """
    async with TokenBench(host, stage, clock) as bench:
        prefill = []
        for one in known.prefill:
            on_point(f"prompts of {one.tokens} tokens, in company")
            prefill.append(one.model_copy(update=_busy(one, await bench.prompt(one.tokens, effort))))
        decode = []
        for two in known.decode:
            on_point(f"{two.batch} answers at a time, in company")
            decode.append(two.model_copy(update=_busy(two, await bench.steps(two.batch, two.context, effort))))
    return known.model_copy(update={"prefill": prefill, "decode": decode})


def risen(points: Sequence[P], is_less: Callable[[P, P], bool]) -> list[P]:
    """The same, none quicker than one with less to compute: that was noise, and the slower one is the safe side."""
    found = []
    for point in points:
        less = [other for other in points if is_less(other, point)]
        found.append(
            point.model_copy(
                update={
                    "duration_ms": max(other.duration_ms for other in less),
                    "high_ms": max(other.high_ms or other.duration_ms for other in less),
                }
            )
        )
    return found


def _point(found: Summary) -> dict[str, Any]:
    return {
        "duration_ms": round(found.median_s * 1000, 4),
        "high_ms": round(found.high_s * 1000, 4),
        "runs": found.runs,
        "steady": found.steady,
    }


def _busy(alone: TokenPoint, found: Summary) -> dict[str, float]:
    busy = max(alone.duration_ms, round(found.median_s * 1000, 4))
    return {"busy_ms": busy, "busy_high_ms": max(busy, alone.high_ms or 0.0, round(found.high_s * 1000, 4))}


def _lengths(counts: Sequence[int]) -> Lengths:
    return Lengths(mean=round(sum(counts) / len(counts), 3), high=float(max(counts)))


def _probing(stage: Stage, name: str) -> Workflow:
    """A workflow of one container that keeps the stage's resources, rights and files, and takes orders."""
    order = Port("order", PortType(Kind.JSON))
    out = Port("out", PortType(Kind.JSON))
    only = replace(
        stage,
        name="probe",
        function=PROBE,
        params={"function": stage.function, "params": dict(stage.params)},
        inputs=(Input("order", (Edge(PortRef(INPUTS, "order")),)),),
        input_ports=(order,),
        outputs=(out,),
        when=(),
        retry=None,
        catch=(),
        timeout_s=None,
        scaling=Scaling(min_replicas=1, max_replicas=1, keep_alive_s=3600.0),
        batch=None,
    )
    return Workflow(name, {"probe": only}, (order,), (Output("out", Edge(PortRef("probe", "out")), out),))
