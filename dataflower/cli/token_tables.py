"""What a plan says of stages with a language model: tables, lines, and what it says when tokens can't be in time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dataflower.planner.result import Plan

if TYPE_CHECKING:
    from dataflower.cli.planning import Case
    from dataflower.planner.application import Application
    from dataflower.planner.promises import Promises, PromisesBroken

NAMES = (("ttft_s", "ttft"), ("tpot_s", "tpot"), ("gap_s", "itl"))


def token_table(plan: Plan, case: Case) -> Table:
    """A row for each stage that works in tokens; objectives are those of the stage, as far as it has any."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("tokens of", "replicas", "answers", "prompt piece", "prompts", "replies", "ttft ms", "tpot ms", "itl ms")
    for name in heads:
        table.add_column(name, justify="left" if name == "tokens of" else "right", no_wrap=True)
    for stage in plan.stages:
        found = stage.tokens
        if found is None:
            continue
        own = case.question.tokens[stage.stage]
        table.add_row(
            stage.stage,
            str(found.replicas),
            str(found.sequences),
            str(found.step_tokens),
            f"{own.prompt[0]:.4g} to {own.prompt[1]:.4g}",
            f"{own.output[0]:.4g} to {own.output[1]:.4g}",
            _of(found.steady.ttft_s, own.ttft_s),
            _of(found.steady.tpot_s, own.tpot_s),
            _of(found.gap_s, own.gap_s),
        )
    return table


def _of(expected_s: float, limit_s: float | None) -> str:
    return f"{expected_s * 1000:.1f}" + ("" if limit_s is None else f" of {limit_s * 1000:.1f}")


def first_token(plan: Plan, case: Case) -> Iterator[str]:
    """Objectives of the workflow for its tokens, and what is expected."""
    promises, application = case.promises, case.inventory.application
    for name in case.inventory.streams:
        stage = next(stage for stage in plan.stages if stage.stage == name)
        if stage.tokens is None:
            continue
        before = {s.stage: s.worst_s for s in plan.stages}
        before[name] = stage.tokens.steady.ttft_s
        after = application.through({s.stage: 0.0 for s in plan.stages} | _until(application, before, name))
        parts = []
        if promises.ttft_s is not None:
            parts.append(f"first token within {after[name] * 1000:.1f} ms of {promises.ttft_s * 1000:g} ms")
        if promises.tpot_s is not None:
            parts.append(f"further ones {stage.tokens.steady.tpot_s * 1000:.1f} ms of {promises.tpot_s * 1000:g} ms")
        if promises.gap_s is not None:
            parts.append(f"gaps up to {stage.tokens.gap_s * 1000:.1f} ms of {promises.gap_s * 1000:g} ms")
        if parts:
            yield f"{name}: {', '.join(parts)}"


def _until(application: Application, latency: dict[str, float], name: str) -> dict[str, float]:
    """The latencies of the stages that `name` waits for, and its own."""
    wanted, waiting = set[str](), [name]
    while waiting:
        one = waiting.pop()
        wanted.add(one)
        waiting += [parent for parent in application.parents[one] if parent not in wanted]
    return {one: latency[one] for one in wanted}


def broken_text(found: PromisesBroken, case: Case) -> str:
    """What binds, and what would do."""
    place = case.place
    at = f"{place.file}:{place.line}:{place.column}" if place.line else place.file
    lines = [
        f"{at}: no plan keeps {_said(found.promises)} at {found.rate:g}/s",
        f"  stage {found.stage}: {found.reason}",
    ]
    nearest = "none" if found.nearest is None else " ".join(_options(found.nearest))
    lines.append(f"  nearest feasible objectives at this rate: {nearest}")
    longest = "none" if found.prompt_tokens is None else f"up to {found.prompt_tokens} tokens"
    lines.append(f"  prompts of {found.stage} with which these would hold: {longest}")
    return "\n".join(lines)


def _said(promises: Promises) -> str:
    found = [(name, getattr(promises, field)) for field, name in NAMES]
    return ", ".join(f"{name} {value * 1000:g} ms" for name, value in found if value is not None)


def _options(promises: Promises) -> Iterator[str]:
    for field, name in NAMES:
        value = getattr(promises, field)
        if value is not None:
            yield f"--{name} {value * 1000:.10g}ms"


def broken_data(found: PromisesBroken) -> dict[str, Any]:
    """The same for programs."""
    nearest = found.nearest
    return {
        "feasible": False,
        "workflow": found.application,
        "rate_per_s": found.rate,
        "stage": found.stage,
        "reason": found.reason,
        **{f"{name}_ms": _ms(getattr(found.promises, field)) for field, name in NAMES},
        **{f"nearest_{name}_ms": None if nearest is None else _ms(getattr(nearest, field)) for field, name in NAMES},
        "nearest_prompt_tokens": found.prompt_tokens,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 9)
