"""Plans that follow traffic and machine: both are measured, the policy is asked, its wish is planned and swapped in.

`planner.replan` decides; this module brings it arrivals and the time. Its one timer runs only while some workflow's
plan says `replan`, and only until nothing can change any more without another arrival.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from dataflower.clock import Clock
from dataflower.core.plan import Replan
from dataflower.errors import DataflowerError
from dataflower.host.api import ReplanDecision, ReplanOutcome, ReplanStatus
from dataflower.host.plans import ReadPlan, made_plan
from dataflower.host.replan_child import Answer, Request, plan_apart
from dataflower.host.settings import HostConfig
from dataflower.planner.basis import slowdown_of
from dataflower.planner.replan import Decision, Replanner, ReplanPolicy
from dataflower.planner.room import Room
from dataflower.spec.workflow import Workflow

if TYPE_CHECKING:
    from dataflower.host.registry import Deployed

_log = logging.getLogger(__name__)

_FAILED = "planning again failed; the present plan is kept"


class Timer(Protocol):
    """Of `Later`."""

    def cancel(self) -> None:
        """It will not go off."""
        ...


Later = Callable[[float, Callable[[], None]], Timer]
"""Call back after so many seconds, as `loop.call_later` does."""


class Plans(Protocol):
    """Where plans are swapped: the host's registry."""

    def room(self, workflow: Workflow) -> Room:
        """What there is for a plan of this workflow, beside all others."""
        ...

    def run_over_plan(self, deployed: Deployed) -> dict[str, float]:
        """Measured over planned run time of its stages, where it is known."""
        ...

    async def swap(self, deployed: Deployed, former: ReadPlan, plan: ReadPlan) -> bool:
        """Run it by another plan, if it still runs by `former`. Raises DataflowerError if there is no room for it."""
        ...


@dataclass(slots=True, eq=False)
class Watch:
    """The arrivals of one workflow, and what was made of them."""

    deployed: Deployed
    is_dry: bool
    replanner: Replanner
    clock: Clock
    wake: Callable[[], None]
    last: ReplanDecision | None = None
    task: asyncio.Task[None] | None = None

    def arrived(self) -> None:
        """An invocation came, whatever becomes of it."""
        self.replanner.arrived(self.clock.monotonic())
        self.wake()


class Replanning:
    """Watches the workflows of a host whose plans say so. For the loop's thread."""

    def __init__(
        self,
        plans: Plans,
        config: HostConfig,
        clock: Clock,
        *,
        later: Later | None = None,
        planner: Callable[[Request], Awaitable[Answer]] = plan_apart,
    ) -> None:
        """`later` and `planner` are for tests."""
        self._plans = plans
        self._clock = clock
        self._later = later or asyncio.get_running_loop().call_later
        self._planner = planner
        self._policy = ReplanPolicy(
            headroom=config.replan_headroom,
            short_s=config.replan_short_s,
            long_s=config.replan_long_s,
            per_minute=config.replan_per_minute,
        )
        self._watches: dict[Deployed, Watch] = {}
        self._timer: Timer | None = None

    def watch(self, deployed: Deployed) -> None:
        """Its plan has been given by somebody: watch it from now on, or no more, as the plan says."""
        self.forget(deployed)
        planned = deployed.planned
        if planned is None or not planned.is_watched:
            return
        is_dry = planned.document.replan is Replan.DRY_RUN
        policy = replace(self._policy, dry_run=is_dry)
        replanner = Replanner(policy, planned.document.rate_per_s, self._clock.monotonic(), _slowdown(planned))
        self._watches[deployed] = deployed.watch = Watch(deployed, is_dry, replanner, self._clock, self._arm)
        self._arm()

    def forget(self, deployed: Deployed) -> None:
        """It has another plan, or is gone."""
        deployed.watch = None
        watch = self._watches.pop(deployed, None)
        if watch is not None and watch.task is not None:
            watch.task.cancel()
        if not self._watches and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        """Plan no more."""
        tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
        for deployed in tuple(self._watches):
            self.forget(deployed)
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self, deployed: Deployed) -> ReplanStatus | None:
        """For people; None if it is not watched."""
        watch = self._watches.get(deployed)
        if watch is None or deployed.planned is None:
            return None
        return ReplanStatus(
            dry_run=watch.is_dry,
            planned_per_s=deployed.planned.document.rate_per_s,
            measured_per_s=watch.replanner.measured(self._clock.monotonic()),
            last=watch.last,
        )

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._later(self._policy.look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        is_settled = True
        for watch in self._watches.values():
            decision = None
            if watch.task is None:
                decision = watch.replanner.decide(now, self._measured(watch.deployed))
            if decision is not None:
                self._begin(watch, decision)
            is_settled = is_settled and watch.task is None and watch.replanner.is_settled(now)
        if self._watches and not is_settled:
            self._arm()

    def _measured(self, deployed: Deployed) -> dict[str, float]:
        """Measured over profiled run time of its stages, where it is known."""
        assert deployed.planned is not None
        counted = _slowdown(deployed.planned)
        return {name: value * counted.get(name, 1.0) for name, value in self._plans.run_over_plan(deployed).items()}

    def _begin(self, watch: Watch, decision: Decision) -> None:
        watch.last = ReplanDecision(
            at=self._clock.wall(),
            rate_per_s=decision.rate,
            measured_per_s=decision.measured,
            reason=decision.reason,
            outcome=ReplanOutcome.PLANNING,
        )
        watch.task = asyncio.get_running_loop().create_task(self._replan(watch, watch.last, decision.slowdown))

    async def _replan(self, watch: Watch, decision: ReplanDecision, slowdown: Mapping[str, float]) -> None:
        deployed = watch.deployed
        former = deployed.planned
        assert former is not None
        try:
            outcome, note = await self._carry_out(watch, former, decision.rate_per_s, slowdown)
        except DataflowerError as error:
            outcome, note = ReplanOutcome.FAILED, error.message
        except Exception:  # the top of this task: traffic goes on under the present plan
            _log.exception("workflow %r: %s", deployed.name, _FAILED)
            outcome, note = ReplanOutcome.FAILED, _FAILED
        finally:
            watch.task = None
        if outcome is ReplanOutcome.FAILED:
            watch.replanner.failed(former.document.rate_per_s, _slowdown(former))
        watch.last = replace(decision, outcome=outcome, note=note)
        _log.log(
            logging.INFO if outcome in (ReplanOutcome.APPLIED, ReplanOutcome.DRY_RUN) else logging.WARNING,
            "workflow %r: %s (%.4g/s): plan for %.4g/s: %s: %s",
            deployed.name,
            decision.reason,
            decision.measured_per_s,
            decision.rate_per_s,
            outcome.value,
            note,
        )

    async def _carry_out(
        self, watch: Watch, former: ReadPlan, rate: float, slowdown: Mapping[str, float]
    ) -> tuple[ReplanOutcome, str]:
        deployed = watch.deployed
        room = self._plans.room(deployed.workflow)
        answer = await self._planner(Request(former.text, rate, room, dict(slowdown)))
        if not answer.plan:
            return ReplanOutcome.REFUSED, answer.note
        plan = made_plan(answer.plan, answer.data, deployed.workflow)
        note = f"{former.containers} -> {plan.containers} containers for {plan.document.rate_per_s:.4g}/s"
        if slowdown:
            counted = ", ".join(f"{stage!r} x{factor:.2f}" for stage, factor in slowdown.items())
            note += f", with the run times of the profile at {counted}"
        note += f" (not more: {answer.note})" if answer.note else ""
        if watch.is_dry:
            return ReplanOutcome.DRY_RUN, note
        if not await self._plans.swap(deployed, former, plan):
            return ReplanOutcome.REFUSED, "somebody gave it another plan meanwhile"
        return ReplanOutcome.APPLIED, note


def _slowdown(plan: ReadPlan) -> dict[str, float]:
    """What a plan counts run times as, over the profile."""
    return {} if plan.document.basis is None else slowdown_of(plan.document.basis)
