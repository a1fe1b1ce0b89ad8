"""What came of an invocation, and how it is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dataflower.cli.exits import WrongUsage
from dataflower.cli.waterfall import as_data
from dataflower.core.trace import InvocationTrace
from dataflower.core.verdict import Verdict
from dataflower.errors import Failure
from dataflower.host.api import State
from dataflower.spec.workflow import Slo


@dataclass(slots=True)
class Outcome:
    """Of one invocation. `outputs` hold printable values; `seconds` is how long the caller waited."""

    invocation: str
    workflow: str
    outputs: dict[str, Any] = field(default_factory=dict)
    streamed: set[str] = field(default_factory=set)
    """Outputs that were shown item by item as they came."""
    failure: Failure | None = None
    seconds: float = 0.0
    verdicts: tuple[Verdict, ...] = ()
    trace: InvocationTrace | None = None

    @property
    def state(self) -> State:
        """How it ended."""
        return State.SUCCEEDED if self.failure is None else State.FAILED

    @property
    def slo_met(self) -> bool:
        """Whether every limit was kept (true without any)."""
        return all(verdict.met for verdict in self.verdicts)

    def as_data(self, *, trace: bool) -> dict[str, Any]:
        """As plain values; with its record points if asked for."""
        data: dict[str, Any] = {
            "invocation": self.invocation,
            "workflow": self.workflow,
            "state": self.state.value,
            "duration_ms": round(self.seconds * 1000, 3),
            "outputs": self.outputs,
        }
        if self.failure is not None:
            data["failure"] = failure_data(self.failure)
        if self.verdicts:
            data["slo"] = slo_data(self.verdicts)
        if trace and self.trace is not None:
            data["trace"] = as_data(self.trace)
        return data


def slo_data(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """A verdict as plain values."""
    return {"met": all(v.met for v in verdicts), "limits": [v.as_data() for v in verdicts]}


def failure_data(failure: Failure) -> dict[str, Any]:
    """A failure as plain values."""
    return {**asdict(failure), "code": failure.code.value}


def want_slo(workflow: str, slo: Slo | None) -> None:
    """For `--check-slo`, before anything is called.

    Raises:
        WrongUsage: the workflow has no limit of time that could be missed.
    """
    if slo is None or not (slo.e2e_ms or slo.ttft_ms or slo.itl_ms or slo.tpot_ms):
        raise WrongUsage(
            f"--check-slo: workflow {workflow!r} has no SLO (its file takes one, say `slo: {{e2e_ms: 500}}`)"
        )


def results(outputs: Mapping[str, Any], streamed: Iterable[str]) -> RenderableType | None:
    """A table of the outputs that were not shown as they came; None if there are none."""
    rest = {name: value for name, value in outputs.items() if name not in set(streamed)}
    if not rest:
        return None
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rest.items():
        table.add_row(name, Text(str(value)))
    return table


def slo_lines(verdicts: Iterable[Verdict]) -> Text:
    """The verdict, a line for each limit."""
    text = Text()
    for verdict in verdicts:
        text.append("\n" if text else "")
        text.append("SLO ", style="bold")
        text.append(str(verdict), style="green" if verdict.met else "bold red")
    return text
