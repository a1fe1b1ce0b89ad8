"""The published methods as settings of one planner. They are readings of the papers, not their code."""

from __future__ import annotations

from collections.abc import Mapping

from dataflower.planner.options import Dispatch, Kinds, Options, Scheduler, Splitter

CLIPPER = Options(
    dispatch=Dispatch.RR, scheduler=Scheduler.GREEDY, splitter=Splitter.EVEN, kinds=Kinds.ONE, max_tuples=1
)
"""Clipper-like: even split, one configuration for each stage, one kind of device."""

NEXUS = Options(
    dispatch=Dispatch.RR, scheduler=Scheduler.GREEDY, splitter=Splitter.QUANTISED, kinds=Kinds.ONE, max_tuples=2
)
"""Nexus: split by dynamic programme over quanta, full machines at 2d and a residual one, one kind of device."""

INFERLINE = Options(dispatch=Dispatch.DT, scheduler=Scheduler.GREEDY, splitter=Splitter.UPGRADE, max_tuples=1)
"""InferLine: from batch 1 on the best device down to cheaper settings; a queue for each stage, so d + b/T."""

SCROOGE = Options(dispatch=Dispatch.DT, scheduler=Scheduler.GREEDY, splitter=Splitter.EXACT, max_tuples=2)
"""Scrooge: mixed devices, full machines and a partial one; our exact splitter stands for its MILP."""

HARPAGON = Options(
    dispatch=Dispatch.TC,
    scheduler=Scheduler.GREEDY,
    splitter=Splitter.LATENCY_COST,
    dummy=True,
    reassign=None,
    merger=True,
    cost_direct=True,
)
"""Harpagon as published: all its parts."""

OPTIMAL = Options(dispatch=Dispatch.TC, scheduler=Scheduler.OPTIMAL, splitter=Splitter.EXACT)
"""The optimum of Harpagon's model: all tuples, all dummy rates, all splits."""

OURS = Options(bursts=False)
"""Exact split, work-conserving groups; requests evenly spaced whatever fans out, which is the model of the others."""

BASELINES: Mapping[str, Options] = {
    "clipper": CLIPPER,
    "nexus": NEXUS,
    "inferline": INFERLINE,
    "scrooge": SCROOGE,
    "harpagon": HARPAGON,
}
"""What we compare with, by name."""
