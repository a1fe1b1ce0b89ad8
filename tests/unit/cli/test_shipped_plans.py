"""The five video applications: planned from the profiles beside them, and their plans played to the end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest

from dataflower.cli.workflows import load_file
from dataflower.config.compose import compose
from dataflower.core.admission import MARGIN
from dataflower.planner import Arrivals, Billing, Infeasible, Options, Question, Tenant, plan_together
from dataflower.planner.dispatch import dispatch_plan, tuned
from dataflower.planner.document import document_of
from dataflower.planner.inventory import Source, take_stock
from dataflower.planner.simulate import Simulated, planned, simulate

ROOT = Path(__file__).parents[3]
COUNT = 200


def source(name: str) -> Source:
    return Source((ROOT / "profiles" / name).read_text(), name)


def arrivals(how: Arrivals, rate: float) -> Iterable[float]:
    if how is Arrivals.PACED:
        return (n / rate for n in range(COUNT))
    random = Random(5)
    return accumulate(random.expovariate(rate) for _ in range(COUNT))


@pytest.mark.parametrize("how", [Arrivals.PACED, Arrivals.POISSON])
@pytest.mark.parametrize(
    ("name", "rate"), [("traffic", 2.0), ("face", 2.0), ("pose", 0.1), ("caption", 0.1), ("actdet", 0.5)]
)
def test_what_is_planned_for_an_application_holds(name: str, rate: float, how: Arrivals) -> None:
    """Frames of a video, and what is found in them, come at once; stages are those of the file, models included."""
    config = compose({"code_path": [str(ROOT)]}).config
    workflow, _ = load_file(ROOT / "workflows" / f"{name}.yaml", config)
    assert workflow.slo is not None
    assert workflow.slo.e2e_ms is not None
    slo_s = workflow.slo.e2e_ms / 1000
    found = take_stock(workflow, [source(f"{name}.yaml"), source(f"{name}-pascal.csv")], source("prices.csv"))
    options = Options(
        arrivals=how, billing=Billing.INTEGER, percentile=workflow.slo.percentile, margin=MARGIN, pack=False
    )
    question = Question(found.application, found.profiles, options, tokens=found.tokens)
    together = plan_together([Tenant(question, rate, slo_s)], options, explain=False)
    assert not isinstance(together, Infeasible)
    document = document_of(together.plans[0], options, question=question)
    dispatch = dispatch_plan(document, workflow, admission=False)
    (profile,) = found.documents
    items = {
        stage: {port.name: each for port in workflow.stages[stage].outputs if port.stream}
        for stage, each in profile.items.items()
    }
    figures = simulate(Simulated(tuned(workflow, document), planned(dispatch), dispatch, items), arrivals(how, rate))
    assert len(figures.latency_s) == COUNT
    assert {stage: own.tasks / COUNT for (_, stage), own in figures.stages.items()} == pytest.approx(
        {module.name: module.factor for module in found.application.modules}, rel=0.02
    )
    assert figures.within(slo_s) >= (1.0 if how is Arrivals.PACED else workflow.slo.percentile / 100)
