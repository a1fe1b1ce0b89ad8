"""What a plan says of the weights that its stages load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from dataflower.planner.loading import Weights, is_late
from dataflower.planner.result import Plan

if TYPE_CHECKING:
    from dataflower.config.settings import Config
    from dataflower.spec.workflow import Workflow


def weights_of(workflow: Workflow, config: Config) -> dict[str, Weights]:
    """Of the stages that name a model: where their weights are on this machine, and how long a load takes."""
    named = {name: stage for name, stage in workflow.stages.items() if stage.model}
    if not named:
        return {}
    from dataflower.checkpoint.accelerator import HOST
    from dataflower.checkpoint.expected import expected
    from dataflower.checkpoint.settings import StoreConfig
    from dataflower.config.convert import shared
    from dataflower.errors import NotFound, WeightsInvalid

    store, found = StoreConfig(**shared(config, StoreConfig)), {}
    for name, stage in named.items():
        model = stage.model
        try:
            known = expected(model, store, str(stage.params.get("device", HOST)))
        except (NotFound, WeightsInvalid):  # planning needs no weights; the first start says what is wrong with them
            found[name] = Weights(model, "missing")
        else:
            found[name] = Weights(model, known.tier.name.lower(), known.nbytes, known.seconds)
    return found


def weights_table(plan: Plan, weights: Mapping[str, Weights]) -> Table:
    """A row for each stage that names a model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("weights of", "model", "MB", "from", "load ms", "cold start"):
        table.add_column(name, justify="right" if name in ("MB", "load ms") else "left", no_wrap=True)
    for stage in plan.stages:
        own = weights.get(stage.stage)
        if own is not None:
            table.add_row(
                stage.stage,
                own.model,
                "?" if own.nbytes is None else f"{own.nbytes / 1e6:.4g}",
                own.tier,
                "not measured" if own.load_s is None else f"{own.load_s * 1000:.4g}",
                "misses the budget" if is_late(stage, own) else "in time",
            )
    return table


def weights_notes(plan: Plan, weights: Mapping[str, Weights]) -> Iterator[str]:
    """What to do about loads that nobody has the time for."""
    late = [stage.stage for stage in plan.stages if stage.stage in weights and is_late(stage, weights[stage.stage])]
    if late:
        yield (
            f"note: who waits for the weights of {', '.join(late)} is late: a server that runs by this plan keeps them "
            "in memory (the file says `prewarm`), in its `preload_memory_bytes`; `dataflower models pin` lets nothing "
            "else drive them out"
        )
    missing = sorted({own.model for own in weights.values() if own.tier == "missing"})
    if missing:
        yield f"note: there is no model {', '.join(map(repr, missing))} on this machine (`dataflower models add`)"
