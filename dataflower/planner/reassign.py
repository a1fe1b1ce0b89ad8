"""Latency that the split left over goes to the machines that would gain from it."""

from __future__ import annotations

from collections.abc import Mapping

from dataflower.planner import bounds
from dataflower.planner.options import Options
from dataflower.planner.schedule import Schedule, regenerate_residual
from dataflower.planner.split import Problem


def reassign(problem: Problem, schedules: Mapping[str, Schedule], options: Options) -> dict[str, Schedule]:
    """Regenerate the residual machines of one module after the other with the slack of its paths.

    In each round the largest saving is applied, until there is none or `options.reassign` rounds are over.
    """
    now = dict(schedules)
    rounds = options.reassign
    while rounds is None or rounds > 0:
        through = problem.application.through({name: s.worst_s for name, s in now.items()})
        best: tuple[float, str, Schedule] | None = None
        for name, schedule in now.items():
            budget = problem.slo_s - through[name] + schedule.worst_s
            found = regenerate_residual(
                schedule, problem.configurations[name], budget, options.dispatch, options.max_tuples
            )
            if found is None:
                continue
            saving = schedule.cost - found.cost
            if saving > bounds.TOLERANCE * schedule.cost and (best is None or saving > best[0]):
                best = (saving, name, found)
        if best is None:
            break
        now[best[1]] = best[2]
        rounds = None if rounds is None else rounds - 1
    return now
