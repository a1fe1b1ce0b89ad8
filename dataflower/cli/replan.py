"""Plans that follow the traffic, for `apply --replan` and `status`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dataflower.cli.files import yaml_text
from dataflower.cli.records import ago, iso
from dataflower.host.api import ReplanOutcome, ReplanStatus

if TYPE_CHECKING:
    from dataflower.core.plan import Replan

_OUTCOMES = {
    ReplanOutcome.PLANNING: "being planned",
    ReplanOutcome.APPLIED: "done",
    ReplanOutcome.DRY_RUN: "not done, as this is a dry run",
    ReplanOutcome.REFUSED: "not possible",
    ReplanOutcome.FAILED: "failed, will be tried again",
}


def with_replan(text: str, file: str, mode: Replan) -> str:
    """A plan file that says what is to become of it when the traffic changes.

    Raises:
        DocumentInvalid: the text is no plan, or one that can't be planned again.
    """
    from dataflower.planner.document import parse_plan

    document = parse_plan(text, file)
    made = yaml_text(document.model_copy(update={"replan": mode}).as_data())
    parse_plan(made, file)
    return made


def replan_data(status: ReplanStatus) -> dict[str, Any]:
    """As plain values."""
    last = status.last
    return {
        "mode": "dry-run" if status.dry_run else "on",
        "planned_per_s": status.planned_per_s,
        "measured_per_s": status.measured_per_s,
        "last": None
        if last is None
        else {
            "at": iso(last.at),
            "rate_per_s": last.rate_per_s,
            "measured_per_s": last.measured_per_s,
            "reason": last.reason,
            "outcome": last.outcome.value,
            "note": last.note,
        },
    }


def replan_lines(status: ReplanStatus) -> Iterator[str]:
    """For people."""
    mode = "would follow the traffic (dry run)" if status.dry_run else "follows the traffic"
    measured = "not measured yet" if status.measured_per_s is None else f"{status.measured_per_s:.4g}/s lately"
    yield f"plan:    for {status.planned_per_s:.4g}/s, {mode}: {measured}"
    last = status.last
    if last is not None:
        yield (
            f"         {ago(last.at)}: {last.reason} ({last.measured_per_s:.4g}/s): plan for {last.rate_per_s:.4g}/s: "
            f"{_OUTCOMES[last.outcome]}{': ' if last.note else ''}{last.note}"
        )
