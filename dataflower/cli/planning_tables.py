"""Plans as tables and as plain data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dataflower.cli.planning import Case, paced
from dataflower.cli.token_tables import first_token, token_table
from dataflower.cli.weights_table import weights_notes, weights_table
from dataflower.planner import Arrivals, Billing, Infeasible, Options, Plan, Together, document_of
from dataflower.planner.baselines import BASELINES, OURS
from dataflower.planner.plan import plan as planned
from dataflower.planner.reasons import Reason, reasons, tail_s
from dataflower.planner.schedule import whole
from dataflower.planner.staircase import Stair

if TYPE_CHECKING:
    pass


def plan_tables(found: Together, cases: Sequence[Case], options: Options) -> Iterator[Table | str]:
    """A table of stages for each workflow, each with its lines of summary."""
    for plan, case in zip(found.plans, cases, strict=True):
        yield _stages(plan, case)
        if any(stage.tokens is not None for stage in plan.stages):
            yield ""
            yield token_table(plan, case)
        if case.weights:
            yield ""
            yield weights_table(plan, case.weights)
        yield "\n".join(_summary(plan, case, options)) + "\n"
    if found.shared:
        yield _shared(found)
    if len(found.plans) > 1:
        yield f"all together: {found.cost:.4g} an hour\n"


def _table(*columns: str, left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _counted(options: Options) -> str:
    return "worst ms" if options.arrivals is Arrivals.PACED else "counted ms"


def _stages(plan: Plan, case: Case) -> Table:
    options = case.question.options
    table = _table(
        "stage", "budget ms", "device", "batch", "replicas", "per s", "busy", _counted(options), "p99 ms", "an hour",
        left=("stage", "device"),
    )  # fmt: skip
    shared = {(s.workflow, s.stage, s.tuple_index) for m in plan.shared for s in m.shares}
    for stage in plan.stages:
        is_turned = any((plan.application, stage.stage, i) in shared for i in range(len(stage.tuples)))
        p99 = (stage.worst_s if is_turned else tail_s(case.question, stage)) * 1000
        for i, a in enumerate(stage.tuples):
            c, count = a.configuration, whole(a.machines)
            machines = f"{a.machines:.2f}" if options.billing is Billing.USE else f"{count}"
            cost = a.cost if options.billing is Billing.USE else a.integer_cost
            first, is_shared = i == 0, (plan.application, stage.stage, i) in shared
            table.add_row(
                stage.stage if first else "",
                f"{stage.budget_s * 1000:.1f}" if first else "",
                c.hardware,
                str(c.batch),
                machines + "*" * is_shared,
                f"{stage.rate:.4g}" if first else "",
                f"{stage.utilisation:.0%}" if first else "",
                f"{(stage.worst_s if is_shared else a.worst_s) * 1000:.1f}",
                f"{p99:.1f}" if first else "",
                f"{cost:.4g}" if not is_shared else "shared" if a.machines <= 1 else f"{cost - c.price:.4g} + shared",
            )
    return table


def _summary(plan: Plan, case: Case, options: Options) -> Iterator[str]:
    kept = "every invocation" if options.arrivals is Arrivals.PACED else f"{plan.percentile:g} % of the invocations"
    yield (
        f"{plan.application}: {plan.rate:g}/s, {kept} within {plan.slo_s * 1000:g} ms; "
        f"{' -> '.join(plan.path)} takes {plan.worst_s * 1000:.1f} ms, {plan.headroom_s * 1000:.1f} ms to spare"
    )
    gap = "the least that this model allows" if plan.exact else "not proven to be the least"
    if not plan.exact and plan.lower_bound > 0:
        gap = f"at most {plan.cost / plan.lower_bound - 1:.1%} above the least"
    yield f"{plan.cost:.4g} an hour, {plan.cost_per_1000:.4g} for 1,000 requests ({gap})"
    yield from first_token(plan, case)
    yield from weights_notes(plan, case.weights)
    yield from _warnings(plan, case)


def _warnings(plan: Plan, case: Case) -> Iterator[str]:
    """What a reader should know before relying on it."""
    for document in case.inventory.documents:
        shaky = [name for name, stage in document.stages.items() if not stage.is_steady]
        if shaky:
            yield f"note: durations that were not steady when measured: {', '.join(shaky)}"
        cores = sum(
            whole(a.machines) * document.stages[stage.stage].cores
            for stage in plan.stages
            for a in stage.tuples
            if stage.stage in document.stages and a.configuration.hardware.split(" x")[0] == document.device
        ) - sum(len(m.shares) - 1 for m in plan.shared if m.hardware.split(" x")[0] == document.device)
        if document.device == "cpu" and cores > (have := len(os.sched_getaffinity(0))):
            yield f"note: this takes {cores:g} cores; this machine has {have}"


def _shared(found: Together) -> Table:
    table = _table("shared machine", "an hour", "cycle ms", left=("shared machine",))
    table.add_column("carries")
    for machine in found.shared:
        several = len(found.plans) > 1
        names = ", ".join((f"{s.workflow}/" if several else "") + s.stage for s in machine.shares)
        table.add_row(f"* {machine.hardware}", f"{machine.price:.4g}", f"{machine.cycle_s * 1000:.1f}", names)
    return table


def reason_tables(found: Together, cases: Sequence[Case]) -> Iterator[Table | str]:
    """Why each stage stands where it does."""
    for plan, case in zip(found.plans, cases, strict=True):
        head = ("why", "path", "ms", "an hour", "quicker by", "with", "costs/ms", "cheaper by", "with ", "saves/ms")
        table = _table(*head, left=("why", "with", "with "))
        rows = reasons(case.question, plan)
        for r in rows:
            now = f"{r.here.latency_s * 1000:.1f}", f"{r.here.cost:.4g}"
            table.add_row(
                r.stage,
                "longest" if r.on_path else "-",
                *now,
                *_step(r.here, r.quicker, r.costs_per_ms),
                *_step(r.here, r.cheaper, r.saves_per_ms),
            )
        yield table
        worth = max((r.worth_per_ms for r in rows), default=0.0)
        if worth > 0:
            yield f"another millisecond of SLO is worth up to {worth:.3g} an hour\n"
        else:
            yield "more time would save nothing: every stage has its cheapest step, or no step fits between\n"


def _step(here: Stair, to: Stair | None, per_ms: float) -> tuple[str, str, str]:
    """By how much, with what, and at which price."""
    if to is None:
        return "-", "", "-"
    kinds = " + ".join(f"{whole(a.machines)} x {a.configuration}" for a in to.schedule.allotments)
    return f"{abs(to.latency_s - here.latency_s) * 1000:.1f} ms", kinds, f"{per_ms:.3g}"


def comparison(found: Together, rows: Sequence[Mapping[str, Any]], options: Options) -> Table:
    """What each method would pay for evenly spaced arrivals, by use and for whole machines (`comparison_data`)."""
    table = _table(
        "method (paced arrivals)",
        "by use",
        "over ours",
        "whole machines",
        "over ours ",
        left=("method (paced arrivals)",),
    )
    for row in rows:
        table.add_row(
            row["method"],
            *(
                text
                for key in ("use", "integer")
                for text in (
                    "no plan" if row[key] is None else f"{row[key]:.4g}",
                    "-" if row[f"{key}_over_ours"] is None else f"{row[f'{key}_over_ours']:.2f}",
                )
            ),
        )
    table.caption = "Each workflow planned alone, for evenly spaced calls: the other methods know no others."
    table.caption_justify = "left"
    if options.arrivals is not Arrivals.PACED:
        asked = f"{sum(plan.cost for plan in found.plans):.4g} for {options.arrivals.value} arrivals"
        table.caption += f" The plan above ({asked}) holds for those, too; theirs promise nothing there."
    return table


def comparison_data(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The same as plain data; None where a method finds no plan for some workflow."""
    costs: dict[str, tuple[float | None, float | None]] = {"ours": (_cost(cases, OURS), _cost(cases, _WHOLE))}
    for name, options in BASELINES.items():
        costs[name] = (_cost(cases, options), _cost(cases, options, integer=True))
    ours = costs["ours"]
    return [
        {
            "method": name,
            "arrivals": Arrivals.PACED.value,
            "use": use,
            "use_over_ours": None if use is None or not ours[0] else use / ours[0],
            "integer": integer,
            "integer_over_ours": None if integer is None or not ours[1] else integer / ours[1],
        }
        for name, (use, integer) in costs.items()
    ]


_WHOLE = replace(OURS, billing=Billing.INTEGER)


def _cost(cases: Sequence[Case], options: Options, *, integer: bool = False) -> float | None:
    """Of all workflows for an hour, each planned alone."""
    total = 0.0
    for case in cases:
        asked = paced(case, options)
        found = planned(asked.application, asked.profiles, case.rate, case.slo_s, options, explain=False)
        if isinstance(found, Infeasible):
            return None
        total += found.integer_cost if integer else found.cost
    return total


def plan_data(
    found: Together, cases: Sequence[Case], options: Options, *, explain: bool, compare: bool
) -> list[dict[str, Any]]:
    """A plan document for each workflow: what `apply --plan` takes, as it is."""
    data = [
        document_of(plan, options, question=case.question, weights=case.weights).as_data()
        for plan, case in zip(found.plans, cases, strict=True)
    ]
    if explain:
        for one, plan, case in zip(data, found.plans, cases, strict=True):
            one["reasons"] = [_reason(r) for r in reasons(case.question, plan)]
    if compare:
        data[0]["compared"] = comparison_data(cases)
    return data


def _reason(r: Reason) -> dict[str, Any]:
    return {
        "stage": r.stage,
        "on_path": r.on_path,
        "quicker_ms": None if r.quicker is None else r.quicker.latency_s * 1000,
        "costs_per_ms": r.costs_per_ms,
        "cheaper_ms": None if r.cheaper is None else r.cheaper.latency_s * 1000,
        "saves_per_ms": r.saves_per_ms,
        "worth_per_ms": r.worth_per_ms,
    }


def infeasible_text(found: Infeasible, case: Case) -> str:
    """What binds, and what would do."""
    place = case.place
    at = f"{place.file}:{place.line}:{place.column}" if place.line else place.file
    lines = [
        f"{at}: no plan keeps {found.slo_s * 1000:.4g} ms at {found.rate:g}/s",
        f"  stage {found.stage} binds, on {' -> '.join(found.path)}: {found.least_s * 1000:.4g} ms at the quickest",
    ]
    slo, rate = found.nearest_slo_s, found.nearest_rate
    lines.append(f"  nearest feasible SLO at this rate: {'none' if slo is None else f'--slo {slo * 1000:.10g}ms'}")
    lines.append(f"  nearest feasible rate with this SLO: {'none' if rate is None else f'--rate {rate:.10g}'}")
    return "\n".join(lines)


def infeasible_data(found: Infeasible, case: Case) -> dict[str, Any]:
    """The same for programs."""
    return {
        "feasible": False,
        "workflow": found.application,
        "rate_per_s": found.rate,
        "slo_ms": found.slo_s * 1000,
        "stage": found.stage,
        "path": list(found.path),
        "least_ms": found.least_s * 1000,
        "nearest_slo_ms": None if found.nearest_slo_s is None else round(found.nearest_slo_s * 1000, 9),
        "nearest_rate_per_s": found.nearest_rate,
    }
