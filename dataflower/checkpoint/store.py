"""The store of one host: a process that holds weights in memory and hands them to whoever asks through its door.

It decides nothing: `tiers.MemoryTier` is told what happens on sockets and disks, and says what to do. The main thread
does that and all sending; each lookup and each load has a thread of its own. It ends when the door does.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.checkpoint import packing, protocol, tier_commands, tier_events, tiers
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.holding import REPORT_S, Client, Holding, Loan
from dataflower.checkpoint.huge import HugePages, populate
from dataflower.checkpoint.layout import pieces
from dataflower.checkpoint.lending import Borrower
from dataflower.checkpoint.notes import Notes
from dataflower.checkpoint.plan import Plan, find
from dataflower.checkpoint.rates import Rates
from dataflower.checkpoint.reasons import code_of, text_of
from dataflower.checkpoint.region import Owned, Segment
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.shelves import Shelves
from dataflower.clock import Clock
from dataflower.errors import Closed, Code, EndOfStream, PeerGone, WouldBlock

MOST_SOCKETS = 1000
"""That one process may have here at a time: a socket for each of the weights that it has mapped."""


class Store:
    """Serves until its door is closed by all who hold it."""

    def __init__(self, door: Link, config: StoreConfig, clock: Clock, notes: Notes | None = None) -> None:
        """Takes the door over. `notes`: what a store before it kept for good is loaded again at once."""
        self._notes = notes
        self._door, self._config, self._clock = door, config, clock
        self._disk = DiskTier(config)
        self._tier = tiers.MemoryTier(config.models_memory_bytes)
        self._rates = Rates(config.models_dir)
        self._clients: dict[int, Client] = {}
        self._by_fd: dict[int, Client] = {}
        self._holdings: dict[str, Holding] = {}
        self._plans: dict[str, Plan] = {}
        self._free: list[Segment] = []
        self._huge = HugePages()
        self._loans: dict[int, Loan] = {}
        self._shelves = Shelves(config, self, clock, self._rates.note)
        self._numbers = 0
        self._loads = self._hits = 0
        self._done: deque[Callable[[], None]] = deque()
        """What threads have to say, run by the main thread; `_wake` makes it look."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(door.fileno(), select.EPOLLIN)
        self._poll.register(self._wake, select.EPOLLIN)
        self._open = True

    def serve(self) -> None:
        """Until the door closes. Memory that clients have mapped stays theirs."""
        for number, model in enumerate(() if self._notes is None else self._notes.read(), 1):
            self._handle(tier_events.Asked(-number, model))  # of nobody's: it stays by its pin
        while self._open:
            spare = self._tier.spare(self._config.models_prefault_bytes)
            events = self._poll.poll(0 if spare else None)
            for fd, _ in events:
                if fd == self._wake:
                    self._run_done()
                elif fd == self._door.fileno():
                    self._admit()
                elif fd in self._by_fd:
                    self._listen(self._by_fd[fd])
            if spare and not events:
                self._prefault()
        self._close()

    # --- sockets -------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        try:
            payload, fds = self._door.receive_nowait()
        except WouldBlock:
            return
        except (EndOfStream, PeerGone, Closed):
            self._open = False
            return
        try:
            knock = wire.decode_knock(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            knock = None
        crowded = knock is not None and knock.process != 0 and self._sockets_of(knock.process) >= MOST_SOCKETS
        if knock is None or crowded or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            return
        self._numbers += 1
        client = Client(self._numbers, Link(fds[0]), knock.process)
        self._clients[client.number] = self._by_fd[client.link.fileno()] = client
        self._poll.register(client.link.fileno(), select.EPOLLIN)
        if knock.version != protocol.VERSION:
            self._refuse(client, Code.FAILED_PRECONDITION, "the host runs another version of dataflower")

    def _sockets_of(self, process: int) -> int:
        return sum(client.process == process for client in self._clients.values())

    def _listen(self, client: Client) -> None:
        try:
            payload, fds = client.link.receive_nowait()
            for fd in fds:
                os.close(fd)
            match protocol.decode_from_client(payload):
                case protocol.Ask(model, early, "") if not client.model:
                    client.model, client.early = model, early
                    self._handle(tier_events.Asked(client.number, model))
                case protocol.Hold() | protocol.Forget() | protocol.AskStatistics() if client.process:
                    raise PeerGone("it is not the host")
                case (protocol.Ask() | protocol.Hold()) as wish if wish.device and not client.model:
                    client.model, client.holds = wish.model, True  # of host memory it gets nothing
                    self._shelves.ask(client.number, wish)
                case protocol.Hold(model, density) if not client.model:
                    client.model, client.holds = model, True
                    self._handle(tier_events.Asked(client.number, model, density))
                case protocol.Hold(model, density) if client.holds and client.model == model:
                    self._handle(tier_events.Valued(client.number, density))
                    self._shelves.value(client.number, density)
                case protocol.Forget(model) if not client.model:
                    client.model, client.holds = model, True
                    self._handle(tier_events.Unwanted(client.number, model))
                case protocol.AskStatistics():
                    self._send(client, self.statistics())
                case _:
                    raise PeerGone("it said what it should not")
        except WouldBlock:
            return
        except (EndOfStream, PeerGone, Closed, msgspec.DecodeError, UnicodeDecodeError):
            self._drop(client)

    def _drop(self, client: Client) -> None:
        if self._clients.pop(client.number, None) is None:
            return
        del self._by_fd[client.link.fileno()]
        self._poll.unregister(client.link.fileno())
        client.link.close()
        self._handle(tier_events.Gone(client.number))
        self._shelves.gone(client.number)

    def _send(self, client: Client, message: protocol.FromStore, fds: Sequence[int] = ()) -> None:
        """Never waits: a client that does not read what it asked for has itself to blame."""
        try:
            client.link.send_nowait(protocol.encode(message), fds)
        except WouldBlock:
            if not isinstance(message, protocol.Progress):
                self._drop(client)
        except (PeerGone, Closed):
            self._drop(client)

    def _refuse(self, client: Client, code: Code, message: str) -> None:
        self._send(client, protocol.Refused(code, message))

    # --- decisions -----------------------------------------------------------------------------------------------

    def _handle(self, event: tier_events.Event) -> None:
        for command in self._tier.handle(event, self._clock.monotonic()):
            match command:
                case tier_commands.Locate(model):
                    self._spawn(lambda model=model: self._locate(model))  # type: ignore[misc]
                case tier_commands.Load(key, recycled):
                    self._load(key, recycled)
                case tier_commands.Evict(key):
                    self._evict(key)
                case tier_commands.Trim(segments):
                    for _ in range(segments):
                        self._free.pop().close()
                case tier_commands.Grant(number, key):
                    self._grant(number, key)
                case tier_commands.Drop(number):
                    if (client := self._clients.get(number)) is not None:
                        self._refuse(client, Code.RESOURCE_EXHAUSTED, "it made room for others")
                        self._drop(client)
                case tier_commands.Forgotten(number, gone):
                    if number in self._clients:
                        self._send(self._clients[number], protocol.Forgotten(gone))
                case tier_commands.Refuse(number, code, message):
                    if (loan := self._loans.get(number)) is not None:
                        loan.borrower.refused(code, message)
                    elif number in self._clients:
                        self._refuse(self._clients[number], code, message)

    def _locate(self, model: str) -> None:
        """In a thread: what a name means now."""
        try:
            plan = self.locate(model)
        except Exception as error:  # whatever the disk or the network may do, somebody waits for an answer
            failed = tier_events.NotLocated(model, code_of(error), text_of(error))
            self.post(lambda: self._handle(failed))
        else:
            pinned = frozenset(key for key, holding in list(self._holdings.items()) if holding.plan.is_pinned())
            self.post(lambda: self._located(plan, pinned))

    def locate(self, model: str) -> Plan:
        """See `shelves.Lender`."""
        wanted = packing.parse(model)
        return find(self._disk, model) if wanted is None else packing.find(self._disk, wanted, self._pack)

    def _pack(self, wanted: packing.Wanted) -> packing.Outcome:
        """In a thread, which waits for the packer's end."""
        return packing.run(self._config, wanted)

    def _located(self, plan: Plan, pinned: frozenset[str]) -> None:
        self._handle(tier_events.Pins(pinned))
        plan.key = self._same_content(plan) or plan.key
        for client in self._clients.values():
            if client.model == plan.model and not client.key:
                client.key = plan.key
        for loan in self._loans.values():
            if loan.model == plan.model and not loan.key:
                loan.key = plan.key
        self._hits += plan.key in self._holdings
        self._plans.setdefault(plan.key, plan)
        self._handle(tier_events.Located(plan.model, plan.key, plan.memory_bytes, plan.remote, plan.name))
        if plan.key not in self._tier.resident() and not self._tier.is_parked(plan.key):
            self._plans.pop(plan.key, None)  # refused
        self._send_early(plan.key)
        self._note()

    def _same_content(self, plan: Plan) -> str | None:
        """Key of a model in memory that has the very content, be it under another name or fetched a moment ago."""
        if plan.located.manifest is None:
            return None
        digest = plan.located.manifest.digest
        return next((key for key, held in self._holdings.items() if held.ready and held.plan.digest == digest), None)

    def _load(self, key: str, recycled: int) -> None:
        plan = self._plans[key]
        segments = [self._free.pop() for _ in range(recycled)]
        try:
            owned = Owned(plan.memory_bytes, segments)
        except OSError as error:
            failed = tier_events.LoadFailed(key, Code.RESOURCE_EXHAUSTED, f"no memory for {plan.name}: {error}")
            whole = pieces(plan.memory_bytes)[0]
            self.post(lambda: self._handle(failed))
            self.post(lambda: self._handle(tier_events.Lost(whole)))
            return
        holding = self._holdings[key] = Holding(plan, owned, self._clock.monotonic())
        self._loads += 1
        self._send_early(key)
        self._spawn(lambda: populate(owned.used()[recycled:]))
        self._spawn(lambda: self._fill(key, holding))

    def _fill(self, key: str, holding: Holding) -> None:
        """In a thread: bytes into memory."""
        done = False

        def ready() -> None:
            nonlocal done
            done = True
            seconds = self._clock.monotonic() - holding.began
            self.post(lambda: self._filled(key, holding, seconds))

        try:
            holding.plan.fill(holding.owned, lambda _: self._arrived(key, holding), ready)
        except Exception as error:  # see `_locate`
            if done:  # memory has it; only the disk does not
                print(f"store: {holding.plan.name}: {text_of(error)}", file=sys.stderr, flush=True)
                return
            failed = tier_events.LoadFailed(key, code_of(error), text_of(error))
            self.post(lambda: self._handle(failed))

    def _arrived(self, key: str, holding: Holding) -> None:
        """In a thread: more of it is there."""
        now = self._clock.monotonic()
        if now >= holding.told_at + REPORT_S:
            holding.told_at = now
            self.post(lambda: self._report(key))

    def _filled(self, key: str, holding: Holding, seconds: float) -> None:
        holding.ready = True
        holding.seconds = seconds
        self._rates.note("remote" if holding.plan.remote else "disk", holding.plan.nbytes, seconds)
        self._huge.improve(holding.owned.used())
        self._handle(tier_events.Loaded(key))
        self._note()

    def _note(self) -> None:
        """Of what is pinned, so that the next store has it if this one dies."""
        if self._notes is not None:
            held = [holding for holding in self._holdings.values() if holding.ready]
            self._notes.write({holding.plan.model for holding in held if holding.plan.is_pinned()})

    def _evict(self, key: str) -> None:
        self._plans.pop(key, None)
        holding = self._holdings.pop(key, None)
        if holding is not None:
            self._free += holding.owned.release()

    def _grant(self, number: int, key: str) -> None:
        if (loan := self._loans.get(number)) is not None:
            self._send_early(key)
            loan.borrower.granted(self._holdings[key])
            return
        client = self._clients.get(number)
        if client is None:  # it went while this was being decided
            self._handle(tier_events.Gone(number))
            return
        if client.holds:
            holding = self._holdings[key]
            self._send(client, protocol.Holding(holding.plan.memory_bytes, holding.seconds))
            return
        if not client.attached:
            self._attach(client, key)
        self._send(client, protocol.Ready(self._holdings[key].plan.digest))

    # --- what clients get ----------------------------------------------------------------------------------------

    def _attach(self, client: Client, key: str) -> None:
        holding = self._holdings[key]
        fds = [segment.fd for segment in holding.owned.segments]
        first, rest = fds[: protocol.MAX_DESCRIPTORS], fds[protocol.MAX_DESCRIPTORS :]
        client.attached = True
        plan = holding.plan
        self._send(client, protocol.Attached(plan.brief(), str(plan.folder), len(fds)), first)
        while rest:
            more, rest = rest[: protocol.MAX_DESCRIPTORS], rest[protocol.MAX_DESCRIPTORS :]
            self._send(client, protocol.Pieces(), more)

    def _send_early(self, key: str) -> None:
        """Memory that is still being filled, to those who asked for it like that."""
        if key in self._holdings:
            for client in list(self._clients.values()):
                if client.key == key and client.early and not client.attached:
                    self._attach(client, key)
            for loan in [loan for loan in self._loans.values() if loan.key == key and not loan.begun]:
                loan.begun = True
                loan.borrower.begin(self._holdings[key])

    def _report(self, key: str) -> None:
        holding = self._holdings.get(key)
        if holding is None or holding.ready:
            return
        arrival = holding.plan.arrival
        message = protocol.Progress(arrival.arrived, holding.plan.nbytes, arrival.prefix)
        for client in list(self._clients.values()):
            if client.key == key and not client.holds:
                self._send(client, message)

    def statistics(self) -> protocol.Statistics:
        """What is where, as clients may ask it."""
        models = [
            protocol.Resident(name, self._holdings[key].plan.digest if ready else "", nbytes, clients, ready, held)
            for key, (name, nbytes, clients, ready, held) in self._tier.resident().items()
        ]
        rates = [
            protocol.Rate(source, self._rates.bandwidth(source), self._tier.queued_bytes(source == "remote"))
            for source in ("disk", "remote")
        ]
        lanes = self._shelves.lanes().items()
        rates += [protocol.Rate(device, self._rates.bandwidth(device), queued) for device, queued in lanes]
        tier = self._tier
        held = [*self._free, *(segment for holding in self._holdings.values() for segment in holding.owned.segments)]
        return protocol.Statistics(
            tier.cap_bytes,
            tier.held_bytes,
            tier.free_bytes,
            self._loads,
            self._hits,
            tuple(models),
            tuple(rates),
            sum(segment.huge_bytes for segment in held),
            self._shelves.statistics(),
        )

    # --- what shelves get ------------------------------------------------------------------------------------------

    def lend(self, model: str, borrower: Borrower) -> int:
        """See `shelves.Lender`."""
        self._numbers += 1
        self._loans[self._numbers] = Loan(model, borrower)
        self._handle(tier_events.Asked(self._numbers, model))
        return self._numbers

    def give_back(self, number: int) -> None:
        """See `shelves.Lender`."""
        if self._loans.pop(number, None) is not None:
            self._handle(tier_events.Gone(number))

    def is_here(self, client: int) -> bool:
        """See `shelves.Lender`."""
        return client in self._clients

    def answer(self, client: int, message: protocol.FromStore, descriptors: Sequence[int] = ()) -> bool:
        """See `shelves.Lender`."""
        if client in self._clients:
            self._send(self._clients[client], message, descriptors)
        return client in self._clients

    # --- threads and memory ----------------------------------------------------------------------------------------

    def _spawn(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True, name="store").start()

    def post(self, say: Callable[[], None]) -> None:
        """See `shelves.Lender`."""
        self._done.append(say)
        with contextlib.suppress(BlockingIOError):  # it is awake
            os.eventfd_write(self._wake, 1)

    def _run_done(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._done:
            self._done.popleft()()

    def _prefault(self) -> None:
        """One segment, while nobody wants anything."""
        segment = Segment()
        segment.make_huge(segment.nbytes)
        segment.populate(segment.nbytes)
        self._free.append(segment)
        self._handle(tier_events.Prefaulted(1))

    def _close(self) -> None:
        for client in list(self._clients.values()):
            client.link.close()
        self._door.close()
        self._poll.close()
