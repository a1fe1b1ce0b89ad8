"""Stages with weights that share a device: whose batch runs next there, and how many at a time.

The order is that of `device.turns`: windows from each function's objective for the first token, then the smallest
margin to it. A batch has the device until each of its tasks has said its first item (or is over): computing prompts is
what functions contend for; further tokens of all of them are made side by side. How long batches take is learned
(`device.pace`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from dataflower.core.config import CoreConfig
from dataflower.core.container import Container
from dataflower.core.device.pace import Pace
from dataflower.core.device.state import DeviceState, Sharer
from dataflower.core.device.turns import STARVED, Turns, ordered
from dataflower.core.device.window import Latency
from dataflower.core.instance import Instance
from dataflower.core.pool import Pool
from dataflower.core.timers import Timer, Timers
from dataflower.core.turn_pool import TurnPool
from dataflower.spec.workflow import Slo, Stage

HERE = "cpu"
"""The device that every host has: its processors, and its main memory."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A batch whose turn it is: these tasks go to this container now."""

    pool: TurnPool
    container: Container
    instances: tuple[Instance, ...]
    margin_s: float


@dataclass(slots=True, eq=False)
class _Run:
    """A batch that has a device."""

    device: Device
    pool: TurnPool
    size: int
    begun: float
    together: int
    """Batches that had the device when it began, this one included: what is foreseen of others goes by that, too."""
    silent: set[int]
    """Its tasks that have not said anything yet."""
    limit: Timer | None = None
    is_whole: bool = True
    """Whether all that spoke or left did so as they should, so that its time tells something."""


@dataclass(slots=True, eq=False)
class Device:
    """One device: a queue for each function, and batches that run."""

    name: str
    slots: int
    turns: Turns[Instance]
    pools: dict[str, TurnPool] = field(default_factory=dict)
    objectives: dict[str, float] = field(default_factory=dict)
    timer: Timer | None = None
    batches: int = 0


class Devices:
    """All of a host that stages take turns on."""

    def __init__(self, config: CoreConfig, timers: Timers) -> None:
        self._slots, self._most, self._ttft_s = config.device_batches, config.device_batch_size, config.device_ttft_s
        self._timers = timers
        self._devices: dict[str, Device] = {}
        self._runs: dict[int, _Run] = {}
        """By task that has not said anything yet."""
        self._paces: dict[str, Pace] = {}
        """By `workflow/stage`: a newer version begins with what is known of the one before."""
        self._shared: dict[tuple[Device, str], Pace] = {}
        """By device and backbone: who is new there, or had batches of one size only, goes by what all on it took."""
        self._made = 0
        self.due: dict[Device, None] = {}
        """Devices on which something may begin."""

    @staticmethod
    def shares(stage: Stage) -> bool:
        """Whether a stage takes turns: it names its weights, and its container puts tasks together by itself.

        A prompt that is still being written would keep the device from others until its writer is done.
        """
        return bool(stage.model) and stage.batch is None and not any(port.stream for port in stage.input_ports)

    def pool(self, key: str, stage: Stage, default_replicas: int, slo: Slo | None) -> TurnPool:
        """The pool of such a stage, on its device."""
        kind = HERE if stage.resources.gpu in {0, ""} else f"gpu {stage.resources.gpu}"
        name = f"{stage.resources.host}:{kind}" if stage.resources.host else kind
        device = self._devices.get(name)
        if device is None:
            device = self._devices[name] = Device(name, self._slots, Turns(self._slots))
        self._made += 1
        pool = TurnPool(key, stage, default_replicas, device.turns, f"{key}/{stage.name} {self._made}")
        own = None if slo is None else slo.ttft_ms
        device.pools[pool.name] = pool
        device.objectives[pool.name] = self._ttft_s if own is None else own / 1000
        self._know(device, pool)
        return pool

    def is_here(self, pool: TurnPool) -> bool:
        """Whether its device is this host's processors."""
        return HERE in self._devices and self._devices[HERE].pools.get(pool.name) is pool

    def forget(self, pool: TurnPool) -> None:
        """Its workflow is gone."""
        for device in self._devices.values():
            if device.pools.get(pool.name) is pool:
                del device.pools[pool.name]
                del device.objectives[pool.name]
                device.turns.forget(pool.name)
                if not any(other.stage.model == pool.stage.model for other in device.pools.values()):
                    self._shared.pop((device, pool.stage.model), None)
                if not any(_function(other) == _function(pool) for other in device.pools.values()):
                    self._paces.pop(_function(pool), None)

    def _know(self, device: Device, pool: TurnPool) -> None:
        latency = self._latency(device, pool)
        objective = device.objectives[pool.name]
        device.turns.know(ordered(pool.name, objective, latency, most=self._most, fitting=pool.concurrency))

    def first_s(self, pool: Pool) -> float:
        """Seconds to the first token of a request by itself, as learned; 0 if nothing was."""
        pace = self._paces.get(_function(pool))
        latency = None if pace is None else pace.latency()
        return 0.0 if latency is None else latency.first_s

    def _latency(self, device: Device, pool: Pool) -> Latency | None:
        own, shared = self._paces.get(_function(pool)), self._shared.get((device, pool.stage.model))
        best = own if own is not None and own.is_settled else shared
        return None if best is None else best.latency()

    # --- what happens --------------------------------------------------------------------------------------------

    def stir(self, pool: TurnPool) -> None:
        """Something has changed for a function: it has more tasks, or more room."""
        for device in self._devices.values():
            if device.pools.get(pool.name) is pool:
                self.due[device] = None

    def spoke(self, task: int, now: float) -> None:
        """A task has said its first item, or is over with results."""
        run = self._runs.pop(task, None)
        if run is not None:
            run.silent.discard(task)
            self._end_if_over(run, now)

    def left(self, task: int, now: float) -> None:
        """A task has left its container; if it had not spoken, it failed or came back."""
        run = self._runs.get(task)
        if run is not None:
            run.is_whole = False
            self.spoke(task, now)

    def _end_if_over(self, run: _Run, now: float) -> None:
        if run.silent:
            return
        device = run.device
        if run.limit is not None:
            run.limit.cancel()
        device.turns.over()
        self.due[device] = None
        if run.is_whole and device.pools.get(run.pool.name) is run.pool:
            seconds = (now - run.begun) / run.together
            self._paces.setdefault(_function(run.pool), Pace()).note(run.size, seconds)
            self._shared.setdefault((device, run.pool.stage.model), Pace()).note(run.size, seconds)
            for pool in device.pools.values():
                if pool.stage.model == run.pool.stage.model:
                    self._know(device, pool)

    def _lapse(self, run: _Run, now: float) -> None:
        """It has been silent for so long that it may wait for others itself: the device is not kept for it any more."""
        run.is_whole = False
        for task in run.silent:
            del self._runs[task]
        run.silent.clear()
        run.limit = None
        self._end_if_over(run, now)

    # --- what to do ----------------------------------------------------------------------------------------------

    def take(self, device: Device, now: float) -> Turn | None:
        """The batch whose turn it is, if any; `began` or `passed` is to be called with it."""
        batch = device.turns.take(now, lambda name: device.pools[name].room())
        if batch is None:
            self._set_timer(device, now)
            return None
        pool = device.pools[batch.function]
        container = pool.roomiest()
        assert container is not None, "no container for a batch that there is room for"
        return Turn(pool, container, batch.items, batch.margin_s)

    def began(self, device: Device, turn: Turn, tasks: Iterable[int], now: float) -> None:
        """These tasks of it are in the container."""
        device.batches += 1
        silent = set(tasks)
        run = _Run(device, turn.pool, len(silent), now, device.turns.running, silent)
        self._runs.update(dict.fromkeys(silent, run))
        limit = now + STARVED * device.objectives[turn.pool.name]
        run.limit = self._timers.at(limit, lambda at: self._lapse(run, at))

    @staticmethod
    def passed(device: Device) -> None:
        """None of its tasks is wanted any more."""
        device.turns.over()

    def _set_timer(self, device: Device, now: float) -> None:
        """Look again when a window closes."""
        at = device.turns.wake(now)
        if device.timer is not None and device.timer.at != at:
            device.timer.cancel()
            device.timer = None
        if device.timer is None and at < math.inf:
            device.timer = self._timers.at(at, lambda _: self._woke(device))

    def _woke(self, device: Device) -> None:
        device.timer = None
        self.due[device] = None

    # --- for people ----------------------------------------------------------------------------------------------

    def states(self) -> tuple[DeviceState, ...]:
        """All devices, now."""
        return tuple(
            DeviceState(
                device.name,
                device.slots,
                device.turns.running,
                device.batches,
                tuple(self._sharer(device, pool) for pool in device.pools.values()),
            )
            for device in self._devices.values()
            if device.pools
        )

    def _sharer(self, device: Device, pool: TurnPool) -> Sharer:
        known = device.turns.known(pool.name)
        latency = self._latency(device, pool)
        workflow = pool.key.rpartition("@")[0]
        return Sharer(workflow, pool.stage.name, pool.queued, known.slo_s, latency, known.window)

    def check_integrity(self) -> None:
        """Raise AssertionError if the books disagree with each other."""
        for device in self._devices.values():
            runs = {id(run) for run in self._runs.values() if run.device is device}
            assert device.turns.running == len(runs) <= device.slots, "batches that have a device"


def _function(pool: Pool) -> str:
    return f"{pool.key.rpartition('@')[0]}/{pool.stage.name}"
