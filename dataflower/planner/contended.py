"""LoRA functions that share a device, under recorded traffic: the policies of `core.device` on a clock that jumps.

What is got ready, whose batch goes next and what makes room is decided by the very code that runs in production; here
are only delays, sizes and arrivals, all from outside, so a replay is the same each time. Each of the four ideas can be
left out, to see what it is worth: `Setting(share=False, preload=False, offload=False, adaptive=False)` is what
functions do that know nothing of each other. Times in seconds, sizes in bytes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dataflower.core.device.arrivals import Rates
from dataflower.core.device.artifact import HOST, Candidate, Key, Kind
from dataflower.core.device.knapsack import choose
from dataflower.core.device.offload import offload
from dataflower.core.device.turns import Batch, Function, Turns, ordered
from dataflower.core.device.window import Latency, Window

DEVICE = "device"
REPLAN_S = 10.0
"""Between two choices of what to have ready."""
COLLECT_S = 0.1
"""How long a function waits for others of its requests if it knows no window of its own."""


@dataclass(frozen=True, slots=True)
class LoraFunction:
    """A function: its backbone, its objective for the first token, and how long its batches take.

    `token_s`: of a further token of a batch. `kv_bytes`: of one request.
    """

    name: str
    backbone: str
    slo_s: float
    latency: Latency
    token_s: float
    adapter_bytes: int
    kernel_bytes: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Backbone:
    """Weights: their size, and how long they take from the disk into main memory and from there onto the device."""

    nbytes: int
    disk_s: float
    copy_s: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One device with its host. `price`: of the whole device for a second.

    `slots`: batches whose first tokens are computed at a time. After that a batch decodes beside the others, at the
    same pace whatever else runs, as runners with continuous batching do; its memory is held until it is over.
    """

    device_bytes: int
    host_bytes: int
    backbones: Mapping[str, Backbone]
    library_bytes: int
    library_s: float
    adapter_s: float
    kernel_s: float
    slots: int = 2
    most: int = 16
    keep_alive_s: float = 60.0
    price: float = 1.0


@dataclass(frozen=True, slots=True)
class Setting:
    """Which ideas are used. `patient`: an idle device waits for windows to close, too."""

    share: bool = True
    preload: bool = True
    offload: bool = True
    adaptive: bool = True
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A call: when, of which function, and how many tokens it generates."""

    at: float
    function: str
    tokens: int


@dataclass(slots=True)
class Outcome:
    """What became of the requests. `cost`: memory held on the device, as a share of it, over time, times its price.

    Attributes:
        ttft_s: of each request, in order of arrival; inf if it never began.
        good: how many kept their objective.
        cold: how many came while their function was not ready.
        idle_cost: the part of `cost` that was for backbones while nothing ran.
        moved: artifacts that left the device to make room.
        batches: how many ran.
    """

    ttft_s: list[float]
    good: int = 0
    cold: int = 0
    cost: float = 0.0
    idle_cost: float = 0.0
    moved: int = 0
    batches: int = 0

    @property
    def good_cost(self) -> float:
        """Cost of a request that kept its objective."""
        return self.cost / self.good if self.good else math.inf


@dataclass(slots=True)
class _Run:
    batch: Batch[int]
    kv_bytes: int


@dataclass(slots=True)
class _State:
    loaded: dict[Key, Candidate] = field(default_factory=dict)
    coming: dict[str, tuple[Key, ...]] = field(default_factory=dict)
    """Function that starts -> what it has room set aside for."""
    used: dict[str, float] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    """Functions that were started for requests and have not served any: else they would drive each other out."""
    runs: list[_Run] = field(default_factory=list)


class Replay:
    """One run over a machine. Use `replay`."""

    def __init__(self, machine: Machine, functions: Iterable[LoraFunction], setting: Setting) -> None:
        self._machine, self._setting = machine, setting
        self._functions = {function.name: function for function in functions}
        self._turns: Turns[int] = Turns(machine.slots, patient=setting.patient or not setting.adaptive)
        for function in self._functions.values():
            self._turns.know(self._known(function))
        self._candidates = self._all_candidates()
        self._rates: Rates[str] = Rates()
        self._state = _State()
        self._wanted: frozenset[Key] = frozenset()
        self._planned = -math.inf
        self._stuck: set[str] = set()
        """Functions for which there was no room, until some may be free."""
        self._now = 0.0
        self._due: list[tuple[float, int, str, object]] = []
        self._sequence = 0

    def _known(self, function: LoraFunction) -> Function:
        if self._setting.adaptive:
            return ordered(function.name, function.slo_s, function.latency, most=self._machine.most)
        # Equal objectives: whoever has waited longest goes first.
        return Function(function.name, 1.0, Latency(0.0, 0.0), Window(self._machine.most, COLLECT_S))

    def _all_candidates(self) -> dict[Key, Candidate]:
        found: dict[Key, Candidate] = {}
        machine, everybody = self._machine, tuple(self._functions)

        def put(*given: object) -> Key:
            candidate = Candidate(*given)  # type: ignore[arg-type]
            found[candidate.key] = candidate
            return candidate.key

        library = put("library", Kind.LIBRARY, HOST, machine.library_bytes, machine.library_s, everybody)
        for function in self._functions.values():
            name, weights = self._weights(function), machine.backbones[function.backbone]
            users = tuple(f.name for f in self._functions.values() if self._weights(f) == name)
            put(name, Kind.BACKBONE, HOST, weights.nbytes, weights.disk_s, users, ((library,),))
            saved = weights.disk_s + weights.copy_s
            backbone = put(name, Kind.BACKBONE, DEVICE, weights.nbytes, saved, users, ((library,),))
            own, artifact = (function.name,), f"adapter {function.name}"
            adapter = put(
                artifact, Kind.ADAPTER, DEVICE, function.adapter_bytes, machine.adapter_s, own, ((backbone,),)
            )
            artifact = f"kernels {function.name}"
            put(artifact, Kind.KERNELS, DEVICE, function.kernel_bytes, machine.kernel_s, own, ((adapter,),))
        return found

    def _weights(self, function: LoraFunction) -> str:
        shared = f"backbone {function.backbone}"
        return shared if self._setting.share else f"{shared} of {function.name}"

    def _chain(self, name: str) -> tuple[Key, ...]:
        weights = self._weights(self._functions[name])
        return (("library", HOST), (weights, DEVICE), (f"adapter {name}", DEVICE), (f"kernels {name}", DEVICE))

    # --- the run -------------------------------------------------------------------------------------------------

    def run(self, requests: Iterable[Request]) -> Outcome:
        """Play requests, in order of time, to the end of the last one."""
        listed = tuple(requests)
        outcome = Outcome([math.inf] * len(listed))
        coming = 0
        while coming < len(listed) or self._due or self._waits:
            call = listed[coming].at if coming < len(listed) else math.inf
            due = self._due[0][0] if self._due else math.inf
            at = min(call, due, self._turns.wake(self._now))
            if at == math.inf:
                break  # what still waits can never start: it does not fit onto the device
            self._account(outcome, max(at, self._now))
            while self._due and self._due[0][0] <= self._now:
                self._happen(*heapq.heappop(self._due)[2:])
            while coming < len(listed) and listed[coming].at <= self._now:
                request = listed[coming]
                self._rates.note(request.function, self._now)
                outcome.cold += not self._is_ready(request.function)
                self._turns.add(request.function, coming, request.at)
                coming += 1
            self._step(outcome, listed)
        return outcome

    @property
    def _waits(self) -> bool:
        return any(self._turns.waiting(name) for name in self._functions)

    def _account(self, outcome: Outcome, now: float) -> None:
        """Pay for the time since the last event."""
        machine, spent = self._machine, now - self._now
        share = spent * machine.price / machine.device_bytes
        outcome.cost += share * (machine.device_bytes - self._free(DEVICE))
        if not self._state.runs:
            held = sum(c.nbytes for c in self._state.loaded.values() if c.place == DEVICE and c.kind is Kind.BACKBONE)
            outcome.idle_cost += share * held
        self._now = now

    def _step(self, outcome: Outcome, listed: tuple[Request, ...]) -> None:
        if self._setting.preload and self._now >= self._planned + REPLAN_S:
            self._preload()
        while (batch := self._turns.take(self._now, self._room)) is not None:
            self._run(batch, outcome, listed)
        for name in self._functions:
            idle = name not in self._state.coming and name not in self._stuck
            if idle and self._turns.waiting(name) and not self._is_ready(name):
                self._start(name, outcome)

    def _later(self, delay_s: float, what: str, about: object) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (self._now + delay_s, self._sequence, what, about))

    def _happen(self, what: str, about: object) -> None:
        state = self._state
        self._stuck.clear()
        if what == "started":
            assert isinstance(about, str)
            for key in state.coming.pop(about):
                self._put(key)
            self._touch(about)
        elif what == "first":
            self._turns.over()
        elif what == "done":
            assert isinstance(about, _Run)
            state.runs.remove(about)
            self._touch(about.batch.function)
        elif what == "idle":
            assert isinstance(about, str)
            self._release(about)

    def _touch(self, name: str) -> None:
        self._state.used[name] = self._now
        self._later(self._machine.keep_alive_s, "idle", name)

    def _put(self, key: Key) -> None:
        candidate = self._candidates.get(key)
        if candidate is not None:
            if key[1] == DEVICE:
                self._state.loaded.pop((key[0], HOST), None)
            self._state.loaded[key] = candidate

    # --- memory --------------------------------------------------------------------------------------------------

    def _free(self, place: str) -> int:
        state, machine = self._state, self._machine
        held = sum(c.nbytes for c in state.loaded.values() if c.place == place)
        coming = {key for keys in state.coming.values() for key in keys if key[1] == place and key not in state.loaded}
        held += sum(self._candidates[key].nbytes for key in coming)
        if place == HOST:
            return machine.host_bytes - held
        return machine.device_bytes - held - sum(run.kv_bytes for run in state.runs)

    def _pinned(self) -> set[Key]:
        busy = {run.batch.function for run in self._state.runs} | self._state.coming.keys()
        busy |= {name for name in self._state.fresh if self._turns.waiting(name)}
        return {key for name in busy for key in self._chain(name)}

    def _leaving(self, need: int, *more: Key) -> list[tuple[Key, bool]] | None:
        """What has to leave the device for `need` more bytes; None if they can't be had."""
        lacking = need - self._free(DEVICE)
        if lacking <= 0:
            return []
        if not self._setting.offload:
            return None
        steps = offload(
            self._state.loaded,
            self._rates.all(self._now),
            DEVICE,
            lacking,
            pinned=self._pinned().union(more),
            host_free=self._free(HOST),
        )
        return None if steps is None else [(step.key, step.to_host) for step in steps]

    def _make_room(self, leaving: list[tuple[Key, bool]], outcome: Outcome) -> None:
        for key, to_host in leaving:
            del self._state.loaded[key]
            outcome.moved += 1
            if to_host and (key[0], HOST) in self._candidates:
                self._put((key[0], HOST))

    def _release(self, name: str, *, ready: bool = True) -> None:
        """If a function was idle for its time: what nobody else uses, and preloading does not want (`ready`), goes."""
        state = self._state
        if self._now < state.used.get(name, 0.0) + self._machine.keep_alive_s - 1e-9 or name in state.coming:
            return
        if self._turns.waiting(name) or any(run.batch.function == name for run in state.runs):
            return
        for key in reversed(self._chain(name)):
            needed = any(key in options for c in state.loaded.values() for options in c.needs)
            if not (ready and key in self._wanted) and not needed and key not in self._pinned():
                state.loaded.pop(key, None)

    def _preload(self) -> None:
        """Load what is worth it into memory that is free; what is too much is let go when its function is idle."""
        self._planned = self._now
        caps = {HOST: self._machine.host_bytes, DEVICE: self._machine.device_bytes // 2}  # the rest is for keys, values
        chosen = choose(
            list(self._candidates.values()), self._rates.all(self._now), caps, self._state.loaded, least=1e-3
        )
        self._wanted = frozenset(chosen.keys)
        for name in self._functions:
            chain = self._chain(name)
            missing = [key for key in chain if key not in self._state.loaded]
            needed = sum(self._candidates[key].nbytes for key in missing if key[1] == DEVICE)
            wanted = self._wanted.issuperset(chain) and missing and name not in self._state.coming
            if wanted and needed <= self._free(DEVICE):
                self._begin(name, chain)

    # --- functions -----------------------------------------------------------------------------------------------

    def _is_ready(self, name: str) -> bool:
        return all(key in self._state.loaded for key in self._chain(name))

    def _room(self, name: str) -> int:
        """How many of its requests could run now: it is ready, and there is or can be room for keys and values."""
        if not self._is_ready(name):
            return 0
        able = self._leaving(self._kv(name, self._turns.waiting(name)), *self._chain(name)) is not None
        return self._machine.most if able else 0

    def _kv(self, name: str, requests: int) -> int:
        return self._functions[name].kv_bytes * min(requests, self._machine.most)

    def _start(self, name: str, outcome: Outcome) -> None:
        chain = self._chain(name)
        missing = [key for key in chain if key not in self._state.loaded]
        need = sum(self._candidates[key].nbytes for key in missing if key[1] == DEVICE)
        leaving = self._leaving(need, *chain)
        if leaving is None:
            for other in self._functions:  # what is only held ready gives way to what is wanted now
                self._release(other, ready=False)
            leaving = self._leaving(need, *chain)
        if leaving is None:
            self._stuck.add(name)
            return
        self._make_room(leaving, outcome)
        self._begin(name, chain)
        self._state.fresh.add(name)

    def _begin(self, name: str, chain: tuple[Key, ...]) -> None:
        """Everything that is missing, one after the other; what another function is loading is waited for with it."""
        machine, state = self._machine, self._state
        weights = machine.backbones[self._functions[name].backbone]
        delay = 0.0
        for key in chain:
            if key in state.loaded:
                continue
            if key[0].startswith("backbone"):
                delay += weights.copy_s + (0.0 if (key[0], HOST) in state.loaded else weights.disk_s)
            else:
                delay += self._candidates[key].saved_s
        state.coming[name] = chain
        self._later(delay, "started", name)

    def _run(self, batch: Batch[int], outcome: Outcome, listed: tuple[Request, ...]) -> None:
        function = self._functions[batch.function]
        self._state.fresh.discard(batch.function)
        kv = self._kv(batch.function, len(batch.items))
        self._make_room(self._leaving(kv, *self._chain(batch.function)) or [], outcome)
        together = self._turns.running
        first_s = together * function.latency.of(len(batch.items))
        tokens = max(listed[item].tokens for item in batch.items)
        for item in batch.items:
            outcome.ttft_s[item] = self._now + first_s - listed[item].at
            outcome.good += outcome.ttft_s[item] <= function.slo_s + 1e-9
        outcome.batches += 1
        run = _Run(batch, kv)
        self._state.runs.append(run)
        self._later(first_s, "first", run)
        self._later(first_s + function.token_s * max(0, tokens - 1), "done", run)


def replay(
    machine: Machine, functions: Iterable[LoraFunction], requests: Iterable[Request], setting: Setting | None = None
) -> Outcome:
    """What these functions would have made of these requests, which are in order of time."""
    return Replay(machine, functions, setting or Setting()).run(requests)
