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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dataflower.checkpoint import accelerator, heads, protocol, tier_commands, tier_events
from dataflower.checkpoint.accelerator import Accelerator, Block
from dataflower.checkpoint.copying import copy
from dataflower.checkpoint.plan import Plan
from dataflower.checkpoint.reasons import code_of, text_of
from dataflower.checkpoint.region import Owned
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.tiers import MemoryTier
from dataflower.clock import Clock
from dataflower.errors import Code, DataflowerError

_NOBODY = -1


class Lent(Protocol):
    """Host memory that is being filled, or is."""

    plan: Plan
    owned: Owned
    ready: bool


class Borrower(Protocol):
    """Who waits for a model in host memory. Called in the store's main thread."""

    def begin(self, lent: Lent) -> None:
        """The memory is there and being filled; once."""
        ...

    def granted(self, lent: Lent) -> None:
        """It is filled and checked, and stays until it is given back."""
        ...

    def refused(self, code: Code, message: str) -> None:
        """There will be none."""
        ...


class Lender(Protocol):
    """The store, as its shelves see it. All but `post` and `locate` is for its main thread."""

    def post(self, say: Callable[[], None]) -> None:
        """Have something said in the main thread; from any thread."""
        ...

    def locate(self, model: str) -> Plan:
        """What a name means now; blocks. Raises DataflowerError."""
        ...

    def lend(self, model: str, borrower: Borrower) -> int:
        """Ask for a model in host memory; gives a number for `give_back`."""
        ...

    def give_back(self, number: int) -> None:
        """It is not needed any more."""
        ...

    def is_here(self, client: int) -> bool:
        """Whether a client has not gone."""
        ...

    def answer(self, client: int, message: protocol.FromStore, descriptors: Sequence[int] = ()) -> bool:
        """Say something to a client; False if it has gone."""
        ...


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

    def close(self) -> None:
        if self.block is not None:
            _free(self.block)
        if self.heads is not None:
            self.heads.close()
        self.block = self.heads = None


class Shelf:
    """What is on one device. For the store's main thread."""

    def __init__(
        self, device: Accelerator, config: StoreConfig, lender: Lender, clock: Clock, note: Callable[[int, float], None]
    ) -> None:
        """`note`: told bytes and seconds of each copy of weights that were in host memory."""
        self.device, self._config, self._lender, self._clock, self._note = device, config, lender, clock, note
        self.tier = MemoryTier(config.models_device_bytes or device.room().total_bytes)
        self._there: dict[str, _Shelved] = {}
        self._plans: dict[str, Plan] = {}

    def place(self, client: int, plan: Plan) -> None:
        """A client wants a model that was found just now."""
        manifest = plan.located.manifest
        digest = "" if manifest is None else manifest.digest
        same = (key for key, held in self._there.items() if digest and held.block and held.plan.digest == digest)
        key = next(same, plan.key)
        self._plans[key] = plan
        self.handle(tier_events.Asked(client, key))
        self.handle(tier_events.Located(key, key, plan.memory_bytes, name=plan.name))
        if key not in self._there:
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
                    self._lender.answer(client, protocol.Refused(code, message))
                case _:  # memory of a device is not recycled, and nobody holds it for later
                    pass
        if not isinstance(event, tier_events.Unwanted):
            idle = [key for key, (_, _, clients, ready, _) in self.tier.resident().items() if ready and not clients]
            for key in idle:
                self.handle(tier_events.Unwanted(_NOBODY, key))

    def statistics(self) -> protocol.Shelved:
        """What clients are told."""
        room = self.device.room()
        models = tuple(
            protocol.Resident(name, self._there[key].plan.digest if ready else "", nbytes, clients, ready)
            for key, (name, nbytes, clients, ready, _) in self.tier.resident().items()
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
        threading.Thread(target=self._copy, args=(shelved, lent), daemon=True, name=self.device.name).start()

    def _copy(self, shelved: _Shelved, lent: Lent) -> None:
        """In a thread."""
        block: Block | None = None
        try:
            block = self.device.allocate(lent.plan.memory_bytes)
            complete = copy(self.device, block, lent.plan, lent.owned)
        except Exception as error:  # whatever the device may do, somebody waits for an answer
            if block is not None:
                _free(block)
            code, text = code_of(error), text_of(error)
            self._lender.post(lambda: self.failed(shelved, code, text))
            return
        arrived = block
        self._lender.post(lambda: self._copied(shelved, arrived, complete))

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
        if shelved.alone:
            self._note(shelved.plan.nbytes, self._clock.monotonic() - shelved.began)
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

    def ask(self, client: int, model: str, device: str) -> None:
        """A client wants a model on a device."""
        threading.Thread(target=self._locate, args=(client, model, device), daemon=True, name="shelves").start()

    def _locate(self, client: int, model: str, name: str) -> None:
        """In a thread."""
        try:
            device = accelerator.find(self._config.accelerators, name)
            plan = self._lender.locate(model)
        except Exception as error:  # whatever drivers, disks and networks may do, somebody waits for an answer
            code, text = code_of(error), text_of(error)
            self._lender.post(lambda: self._refuse(client, code, text))
        else:
            self._lender.post(lambda: self._located(client, device, plan))

    def _refuse(self, client: int, code: Code, text: str) -> None:
        self._lender.answer(client, protocol.Refused(code, text))

    def _located(self, client: int, device: Accelerator, plan: Plan) -> None:
        if not self._lender.is_here(client):
            return
        shelf = self._shelves.get(device.name)
        if shelf is None:
            shelf = self._shelves[device.name] = Shelf(
                device, self._config, self._lender, self._clock, lambda n, s: self._note(device.name, n, s)
            )
        self._of_client[client] = shelf
        shelf.place(client, plan)

    def gone(self, client: int) -> None:
        """A client let go, or died."""
        shelf = self._of_client.pop(client, None)
        if shelf is not None:
            shelf.handle(tier_events.Gone(client))

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
