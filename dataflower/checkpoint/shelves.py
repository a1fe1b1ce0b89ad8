"""The device tier of a store: one copy of a model on each device, whatever the number of functions that use it.

The store's process owns the memory; who asks is handed a descriptor of it. What is where is decided by the very policy
of host memory (`tiers.MemoryTier`): one load however many ask, one at a time, a cap, a refusal that says who has the
room. Only leaving is quicker: weights that nobody uses leave a device at once, since functions want its memory for
other things, and the host's memory has them most likely.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dataflower.checkpoint import accelerator, heads, protocol, tier_commands, tier_events
from dataflower.checkpoint.accelerator import Accelerator, Block, Room
from dataflower.checkpoint.copying import copy
from dataflower.checkpoint.lending import Lender, Lent
from dataflower.checkpoint.plan import Plan
from dataflower.checkpoint.reasons import code_of, text_of
from dataflower.checkpoint.region import Owned
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.tiers import MemoryTier
from dataflower.clock import Clock
from dataflower.errors import Code, DataflowerError, ResourceExhausted

_NOBODY = -1
REPORT_S = 0.02
"""Between two reports of a copy at least."""


@dataclass(slots=True)
class _Shelved:
    """A model on a device, or on its way. It is complete once it has a block and the host's tier has granted it."""

    key: str
    plan: Plan
    began: float = 0.0
    loan: int = 0
    granted: bool = False
    alone: bool = False
    """The copy waited for no load, so what it took is the device's own pace."""
    short: bool = False
    """The load ended before all was there."""
    over: bool = False
    """It failed."""
    block: Block | None = None
    heads: Owned | None = None
    seconds: float = 0.0
    """That it took to come here."""
    told_at: float = -REPORT_S
    """When its progress was reported last."""

    def close(self) -> None:
        if self.block is not None:
            _free(self.block)
        if self.heads is not None:
            self.heads.close()
        self.block = self.heads = None


class Shelf:
    """What is on one device. For the store's main thread."""

    def __init__(
        self,
        device: Accelerator,
        config: StoreConfig,
        lender: Lender,
        clock: Clock,
        *,
        total_bytes: int,
        note: Callable[[int, float], None],
    ) -> None:
        """`total_bytes`: the device's memory. `note`: told bytes and seconds of each copy of weights that were in host
        memory.
        """
        self.device, self._config, self._lender, self._clock, self._note = device, config, lender, clock, note
        self._total_bytes = total_bytes
        self.tier = MemoryTier(config.models_device_bytes or total_bytes)
        self._there: dict[str, _Shelved] = {}
        self._plans: dict[str, Plan] = {}
        self._asking: dict[int, str] = {}
        """Who waits for what."""
        self._holders: set[int] = set()

    def place(self, client: int, plan: Plan, density: float | None) -> None:
        """A client wants a model that was found just now. `density`: see `protocol.Hold`; None: it needs it."""
        if density is not None:
            self._holders.add(client)
        manifest = plan.located.manifest
        digest = "" if manifest is None else manifest.digest
        same = (key for key, held in self._there.items() if digest and held.block and held.plan.digest == digest)
        key = next(same, plan.key)
        self._plans[key], self._asking[client] = plan, key
        self.handle(tier_events.Asked(client, key, density))
        self.handle(tier_events.Located(key, key, plan.memory_bytes, name=plan.name))
        if key not in self.tier.resident() and not self.tier.is_parked(key):
            self._plans.pop(key, None)  # refused

    def handle(self, event: tier_events.Event) -> None:
        """Have the policy decide, do it, and let go of what nobody uses."""
        for command in self.tier.handle(event, self._clock.monotonic()):
            match command:
                case tier_commands.Load(key):
                    self._load(key)
                case tier_commands.Evict(key):
                    self._plans.pop(key, None)
                    if (shelved := self._there.pop(key, None)) is not None:
                        shelved.close()
                case tier_commands.Grant(client, key):
                    self._grant(client, key)
                case tier_commands.Refuse(client, code, message):
                    self._asking.pop(client, None)
                    self._lender.answer(client, protocol.Refused(code, message))
                case tier_commands.Drop(client):
                    self._lender.answer(client, protocol.Refused(Code.RESOURCE_EXHAUSTED, "it made room for others"))
                case _:  # memory of a device is not recycled
                    pass
        if not isinstance(event, tier_events.Unwanted):
            known = self.tier.resident().items()
            for key in [key for key, (_, _, clients, ready, held) in known if ready and not (clients or held)]:
                self.handle(tier_events.Unwanted(_NOBODY, key))

    def gone(self, client: int) -> None:
        """A client let go, or died."""
        self._asking.pop(client, None)
        self._holders.discard(client)
        self.handle(tier_events.Gone(client))

    def statistics(self) -> protocol.Shelved:
        """What clients are told. A device that has failed has no room."""
        try:
            room = self.device.room()
        except DataflowerError:
            room = Room(0, self._total_bytes)
        models = tuple(
            protocol.Resident(name, self._there[key].plan.digest if ready else "", nbytes, clients, ready, held)
            for key, (name, nbytes, clients, ready, held) in self.tier.resident().items()
            if key in self._there
        )
        return protocol.Shelved(self.device.name, room.free_bytes, room.total_bytes, models)

    # --- loads ---------------------------------------------------------------------------------------------------

    def _load(self, key: str) -> None:
        shelved = self._there[key] = _Shelved(key, self._plans[key])
        shelved.loan = self._lender.lend(shelved.plan.model, _Loan(self, shelved))

    def begin(self, shelved: _Shelved, lent: Lent) -> None:
        """Host memory is being filled: copy behind that, in a thread."""
        shelved.plan, shelved.alone, shelved.began = lent.plan, lent.ready, self._clock.monotonic()
        self._start(shelved, lent)

    def _start(self, shelved: _Shelved, lent: Lent) -> None:
        threading.Thread(target=self._copy, args=(shelved, lent), daemon=True, name=self.device.name).start()

    def _copy(self, shelved: _Shelved, lent: Lent) -> None:
        """In a thread."""
        block: Block | None = None
        try:
            try:
                block = self.device.allocate(lent.plan.memory_bytes)
            except ResourceExhausted as error:
                text = error.message
                self._lender.post(lambda: self._crowded(shelved, lent, text))
                return
            complete = copy(self.device, block, lent.plan, lent.owned, lambda copied: self._tell(shelved, copied))
        except Exception as error:  # whatever the device may do, somebody waits for an answer
            if block is not None:
                _free(block)
            code, text = code_of(error), text_of(error)
            self._lender.post(lambda: self.failed(shelved, code, text))
            return
        arrived = block
        self._lender.post(lambda: self._copied(shelved, arrived, complete))

    def _crowded(self, shelved: _Shelved, lent: Lent, why: str) -> None:
        """The device has less room than the policy thinks, since others use it, too: what nobody uses leaves first."""
        if shelved.over:
            return
        there = len(self._there)
        idle = [nbytes for _, nbytes, clients, ready, _ in self.tier.resident().values() if ready and not clients]
        if self.statistics().free_bytes + sum(idle) >= shelved.plan.memory_bytes:  # else they would leave in vain
            self.handle(tier_events.NoRoom(shelved.key))
        if len(self._there) < there:
            self._start(shelved, lent)
        else:
            self.failed(shelved, Code.RESOURCE_EXHAUSTED, why)

    def _tell(self, shelved: _Shelved, copied: int) -> None:
        """In a thread: so many bytes are on the device."""
        now = self._clock.monotonic()
        if now >= shelved.told_at + REPORT_S:
            shelved.told_at = now
            self._lender.post(lambda: self._report(shelved, copied))

    def _report(self, shelved: _Shelved, copied: int) -> None:
        total = shelved.plan.nbytes
        for client in [client for client, key in self._asking.items() if key == shelved.key]:
            if client not in self._holders:
                self._lender.answer(client, protocol.Progress(min(copied, total), total, 0))

    def _copied(self, shelved: _Shelved, block: Block, complete: bool) -> None:
        if shelved.over:
            _free(block)
            return
        shelved.block, shelved.short = block, not complete
        self._finish(shelved)

    def granted(self, shelved: _Shelved, lent: Lent) -> None:
        """The host's tier has it, checked."""
        if shelved.over:
            return
        assert lent.plan.manifest is not None
        shelved.granted = True
        try:
            shelved.heads = heads.take(lent.plan.manifest, lent.owned)
        except OSError as error:
            self.failed(shelved, Code.RESOURCE_EXHAUSTED, f"no memory for the headers of {lent.plan.name}: {error}")
            return
        self._finish(shelved)

    def _finish(self, shelved: _Shelved) -> None:
        if shelved.block is None or not shelved.granted:
            return  # a load that ended too soon is refused by the host's tier, which says why
        if shelved.short:
            self.failed(shelved, Code.INTERNAL, f"{shelved.plan.name} came onto {self.device.name} in part only")
            return
        self._lender.give_back(shelved.loan)
        shelved.seconds = self._clock.monotonic() - shelved.began
        if shelved.alone:
            self._note(shelved.plan.nbytes, shelved.seconds)
        self.handle(tier_events.Loaded(shelved.key))

    def failed(self, shelved: _Shelved, code: Code, message: str) -> None:
        """There will be nothing on the device."""
        if shelved.over:
            return
        shelved.over = True
        self._lender.give_back(shelved.loan)
        self.handle(tier_events.LoadFailed(shelved.key, code, message))

    def _grant(self, client: int, key: str) -> None:
        shelved = self._there[key]
        plan, block, host = shelved.plan, shelved.block, shelved.heads
        assert block is not None
        assert host is not None
        self._asking.pop(client, None)
        if client in self._holders:
            self._lender.answer(client, protocol.Holding(block.nbytes, shelved.seconds))
            return
        try:
            descriptor = block.export()
        except DataflowerError as error:
            self._lender.answer(client, protocol.Refused(error.code, error.message))
            self._lender.post(lambda: self.handle(tier_events.Gone(client)))
            return
        try:
            told = self._lender.answer(
                client,
                protocol.OnDevice(
                    plan.brief(),
                    str(plan.folder),
                    plan.digest,
                    self.device.name,
                    self._config.accelerators,
                    block.nbytes,
                ),
                [descriptor, *(segment.fd for segment in host.segments)],
            )
        finally:
            os.close(descriptor)
        if not told:
            self._lender.post(lambda: self.handle(tier_events.Gone(client)))


@dataclass(frozen=True, slots=True)
class _Loan:
    """A shelf that borrows host memory for one load."""

    shelf: Shelf
    shelved: _Shelved

    def begin(self, lent: Lent) -> None:
        self.shelf.begin(self.shelved, lent)

    def granted(self, lent: Lent) -> None:
        self.shelf.granted(self.shelved, lent)

    def refused(self, code: Code, message: str) -> None:
        self.shelf.failed(self.shelved, code, message)


class Shelves:
    """All devices of a host. For the store's main thread; a device is opened when somebody first asks for it."""

    def __init__(
        self, config: StoreConfig, lender: Lender, clock: Clock, note: Callable[[str, int, float], None]
    ) -> None:
        """`note`: told the device, bytes and seconds of each copy of weights that were in host memory."""
        self._config, self._lender, self._clock, self._note = config, lender, clock, note
        self._shelves: dict[str, Shelf] = {}
        self._of_client: dict[int, Shelf] = {}

    def ask(self, client: int, wish: protocol.Ask | protocol.Hold) -> None:
        """A client wants a model on a device, or wants it to stay there."""
        density = wish.density if isinstance(wish, protocol.Hold) else None
        work = (client, wish.model, wish.device, density)
        threading.Thread(target=self._locate, args=work, daemon=True, name="shelves").start()

    def _locate(self, client: int, model: str, name: str, density: float | None) -> None:
        """In a thread."""
        try:
            device = accelerator.find(self._config.accelerators, name)
            total_bytes = device.room().total_bytes
            plan = self._lender.locate(model)
        except Exception as error:  # whatever drivers, disks and networks may do, somebody waits for an answer
            code, text = code_of(error), text_of(error)
            self._lender.post(lambda: self._refuse(client, code, text))
        else:
            self._lender.post(lambda: self._located(client, device, total_bytes, plan, density))

    def _refuse(self, client: int, code: Code, text: str) -> None:
        self._lender.answer(client, protocol.Refused(code, text))

    def _located(self, client: int, device: Accelerator, total_bytes: int, plan: Plan, density: float | None) -> None:
        if not self._lender.is_here(client):
            return
        shelf = self._shelves.get(device.name)
        if shelf is None:
            note = partial(self._note, device.name)
            shelf = Shelf(device, self._config, self._lender, self._clock, total_bytes=total_bytes, note=note)
            self._shelves[device.name] = shelf
        self._of_client[client] = shelf
        shelf.place(client, plan, density)

    def value(self, client: int, density: float) -> None:
        """Who holds a model on a device, or will, values a byte of it otherwise now; of others nothing is done."""
        if (shelf := self._of_client.get(client)) is not None:
            shelf.handle(tier_events.Valued(client, density))

    def gone(self, client: int) -> None:
        """A client let go, or died."""
        shelf = self._of_client.pop(client, None)
        if shelf is not None:
            shelf.gone(client)

    def statistics(self) -> tuple[protocol.Shelved, ...]:
        """Of all devices that were asked for."""
        return tuple(shelf.statistics() for shelf in self._shelves.values())

    def lanes(self) -> dict[str, int]:
        """Device -> bytes that are to be copied before what would be asked for now."""
        return {name: shelf.tier.queued_bytes(remote=False) for name, shelf in self._shelves.items()}


def _free(block: Block) -> None:
    """A device that has failed frees its memory by itself; the store goes on."""
    try:
        block.close()
    except DataflowerError as error:
        print(f"store: {error.message}", file=sys.stderr, flush=True)
