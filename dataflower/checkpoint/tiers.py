"""The host memory tier: which weights are in memory, which make room for others, who waits for what. Pure.

One copy of a model however many ask for it (single flight), one load at a time from each source (so that the time until
a load begins can be told: ServerlessLLM, OSDI'24, section 6), the longest unused makes room, and never what is
pinned or in use. Memory is counted in the pieces that `layout` cuts it into; whole segments are recycled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from dataflower.checkpoint.layout import SEGMENT_BYTES, pieces
from dataflower.checkpoint.tier_commands import Command, Drop, Evict, Forgotten, Grant, Load, Locate, Refuse, Trim
from dataflower.checkpoint.tier_events import (
    Asked,
    Event,
    Gone,
    Loaded,
    LoadFailed,
    Located,
    Lost,
    NoRoom,
    NotLocated,
    Pins,
    Prefaulted,
    Unwanted,
    Valued,
)
from dataflower.errors import Code


@dataclass(slots=True)
class _Entry:
    """A model in memory, or on its way there. `recycled`: free segments set aside for a load that has not begun."""

    key: str
    name: str
    nbytes: int
    remote: bool
    whole: int
    tail: int
    recycled: int = 0
    ready: bool = False
    waiting: list[int] = field(default_factory=list)
    clients: set[int] = field(default_factory=set)
    holders: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    """What it was asked for by."""
    unwanted: list[int] = field(default_factory=list)
    """Who waits for its end."""
    last_used: float = 0.0

    @property
    def held(self) -> int:
        return self.whole * SEGMENT_BYTES + self.tail


class MemoryTier:
    """What is where. `handle` is told what happened and says what to do."""

    def __init__(self, cap_bytes: int) -> None:
        self.cap_bytes = cap_bytes
        self._entries: dict[str, _Entry] = {}
        self._locating: dict[str, list[int]] = {}
        self._of_client: dict[int, str] = {}
        self._density: dict[int, float] = {}
        """Of clients that hold a model, or want to."""
        self._queues: dict[bool, deque[str]] = {False: deque(), True: deque()}
        self._loading: dict[bool, str | None] = {False: None, True: None}
        self._parked: list[tuple[Located, list[int]]] = []
        """Who needs a model and has no room because of a load that nobody needs: until that is over."""
        self._pinned: frozenset[str] = frozenset()
        self._free = 0

    # --- what is there -------------------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """Memory of models and of free segments; never more than the cap."""
        return self._free * SEGMENT_BYTES + sum(entry.held for entry in self._entries.values())

    @property
    def free_bytes(self) -> int:
        """Memory of free segments."""
        return self._free * SEGMENT_BYTES

    def resident(self) -> dict[str, tuple[str, int, int, bool, bool]]:
        """Key -> (name, bytes, clients, whether it is completely there, whether it is held)."""
        return {e.key: (e.name, e.nbytes, len(e.clients), e.ready, bool(e.holders)) for e in self._entries.values()}

    def queued_bytes(self, remote: bool) -> int:
        """What is to be loaded from the disk (or fetched) before a load that would be asked for now."""
        lane = [*self._queues[remote], *filter(None, [self._loading[remote]])]
        return sum(self._entries[key].nbytes for key in lane)

    def spare(self, nbytes: int) -> int:
        """How many free segments are still to be made ready, if `nbytes` of memory are wanted in advance."""
        room = (self.cap_bytes - self.held_bytes) // SEGMENT_BYTES
        return max(0, min((nbytes - self.held_bytes) // SEGMENT_BYTES, room))

    # --- what happens --------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take note of an event at time `now` (seconds); gives what is to be done, in order."""
        match event:
            case Asked(client, model, density):
                if density is not None:
                    self._density[client] = density
                return self._asked(client, model)
            case Valued(client, density):
                self._density[client] = density
            case Located():
                return self._located(event, now)
            case NotLocated(model, code, message):
                return [Refuse(client, code, message) for client in self._locating.pop(model, [])]
            case Loaded(key):
                return self._loaded(key, now)
            case LoadFailed(key, code, message):
                return self._failed(key, code, message, now)
            case NoRoom(key):
                idle = self._idle(self._worth(self._entries[key].waiting))
                return self._evict(idle[0]) if idle else []
            case Gone(client):
                self._gone(client, now)
                return self._let_go()
            case Unwanted(client, model):
                return self._unwanted(client, model)
            case Pins(keys):
                self._pinned = keys
            case Prefaulted(segments):
                self._free += segments
            case Lost(segments):
                self._free -= segments
        return []

    def _asked(self, client: int, model: str) -> list[Command]:
        # What a name means is looked up each time: the user may have put other files there. Lookups are shared, too.
        first = model not in self._locating
        self._locating.setdefault(model, []).append(client)
        return [Locate(model)] if first else []

    def _located(self, event: Located, now: float) -> list[Command]:
        clients = self._locating.pop(event.model, [])
        return self._place(event, clients, now) if clients else []

    def _place(self, event: Located, clients: list[int], now: float) -> list[Command]:
        entry = self._entries.get(event.key)
        commands: list[Command] = []
        if entry is None:
            whole, tail = pieces(event.nbytes)
            entry = _Entry(event.key, event.name or event.model, event.nbytes, event.remote, whole, tail)
            room = self._make_room(entry, self._worth(clients))
            if isinstance(room, str):
                if self._worth(clients) == math.inf and self._has_whims:
                    self._parked.append((event, clients))
                    return []
                return [Refuse(client, Code.RESOURCE_EXHAUSTED, room) for client in clients]
            commands += room
            self._entries[event.key] = entry
            self._queues[event.remote].append(event.key)
            commands += self._begin(event.remote)
        entry.names.add(event.model)
        commands += self._kept(entry)
        if not entry.ready:
            entry.waiting += clients
            return commands
        return commands + [self._grant(entry, client, now) for client in clients]

    def _unwanted(self, client: int, model: str) -> list[Command]:
        entry = next((e for e in self._entries.values() if model in e.names), None)
        if entry is None:
            return [Forgotten(client, True)]
        if entry.key in self._pinned or not entry.ready or model in self._locating:
            return [Forgotten(client, False)]
        entry.unwanted.append(client)
        return self._let_go()

    @staticmethod
    def _kept(entry: _Entry) -> list[Command]:
        """Somebody wants it after all."""
        waiting, entry.unwanted = entry.unwanted, []
        return [Forgotten(client, False) for client in waiting]

    def _let_go(self) -> list[Command]:
        """Evict what nobody wants and nobody uses, and give its memory back to the system."""
        commands: list[Command] = []
        for entry in [e for e in self._entries.values() if e.unwanted and not e.clients]:
            evicted, *dropped = self._evict(entry)
            commands += [evicted, Trim(entry.whole), *dropped]
            self._free -= entry.whole
            commands += [Forgotten(client, True) for client in entry.unwanted]
        return commands

    @property
    def _has_whims(self) -> bool:
        """Whether something is being loaded that nobody needs."""
        return any(not e.ready and self._worth(e.waiting) < math.inf for e in self._entries.values())

    def is_parked(self, key: str) -> bool:
        """Whether somebody waits for room for this model."""
        return any(event.key == key for event, _ in self._parked)

    def _unpark(self, now: float) -> list[Command]:
        parked, self._parked = self._parked, []
        return [command for event, clients in parked if clients for command in self._place(event, clients, now)]

    def _worth(self, clients: Iterable[int]) -> float:
        """What a byte is worth to them: endlessly much to who needs it; -1: nobody wants it."""
        return max((self._density.get(client, math.inf) for client in clients), default=-1.0)

    def _grant(self, entry: _Entry, client: int, now: float) -> Grant:
        (entry.holders if client in self._density else entry.clients).add(client)
        entry.last_used = now
        self._of_client[client] = entry.key
        return Grant(client, entry.key)

    def _loaded(self, key: str, now: float) -> list[Command]:
        entry = self._entries[key]
        entry.ready, entry.last_used = True, now
        self._loading[entry.remote] = None
        waiting, entry.waiting = entry.waiting, []
        granted: list[Command] = [self._grant(entry, client, now) for client in waiting]
        return granted + self._begin(entry.remote) + self._unpark(now)

    def _failed(self, key: str, code: Code, message: str, now: float) -> list[Command]:
        entry = self._forget(key)
        self._loading[entry.remote] = None
        refused: list[Command] = [Refuse(client, code, message) for client in entry.waiting]
        return [Evict(key), *refused, *self._begin(entry.remote), *self._unpark(now)]

    def _gone(self, client: int, now: float) -> None:
        self._density.pop(client, None)
        key = self._of_client.pop(client, None)
        if key is not None:
            entry = self._entries[key]
            entry.holders.discard(client)
            entry.clients.discard(client)
            entry.last_used = now
            return
        for unwanted in (entry.unwanted for entry in self._entries.values()):
            if client in unwanted:
                unwanted.remove(client)
        parked = (clients for _, clients in self._parked)
        for waiting in (*self._locating.values(), *parked, *(entry.waiting for entry in self._entries.values())):
            if client in waiting:
                waiting.remove(client)  # what was begun goes on: the next to ask finds it done

    def _begin(self, remote: bool) -> list[Command]:
        """Start the next load from a source unless one is under way."""
        if self._loading[remote] is not None or not self._queues[remote]:
            return []
        key = self._queues[remote].popleft()
        self._loading[remote] = key
        return [Load(key, self._entries[key].recycled)]

    # --- room ----------------------------------------------------------------------------------------------------

    def _make_room(self, entry: _Entry, worth: float) -> list[Command] | str:
        """Evictions that make room for `entry`, which then takes the free segments it can use; or why there is none.

        What is held goes after everything else, the least dense first, and only for what is worth more.
        """
        if entry.held > self.cap_bytes:
            return f"{entry.name} needs {_mib(entry.held)} of memory; the store may use {_mib(self.cap_bytes)}"
        idle = self._idle(worth)
        fixed = self.held_bytes - self.free_bytes - sum(e.held for e in idle)
        if fixed + entry.held > self.cap_bytes:
            return (
                f"{entry.name} needs {_mib(entry.held)} of memory; of the store's {_mib(self.cap_bytes)} "
                f"{_mib(fixed)} are in use or pinned: {', '.join(self._holders())}"
            )
        commands: list[Command] = []
        while self.held_bytes + entry.held - min(self._free, entry.whole) * SEGMENT_BYTES > self.cap_bytes:
            if self._free > entry.whole:
                over = self.held_bytes + entry.held - entry.whole * SEGMENT_BYTES - self.cap_bytes
                count = min(self._free - entry.whole, -(-over // SEGMENT_BYTES))
                self._free -= count
                commands.append(Trim(count))
            else:  # there is an idle one, or `fixed` would have been too much
                commands += self._evict(idle.pop(0))
        entry.recycled = min(self._free, entry.whole)
        self._free -= entry.recycled
        return commands

    def _idle(self, worth: float) -> list[_Entry]:
        """What may leave for something of this worth, in the order in which it leaves."""
        found = [
            e
            for e in self._entries.values()
            if e.ready and not e.clients and e.key not in self._pinned and self._worth(e.holders) < worth
        ]
        return sorted(found, key=lambda e: (self._worth(e.holders), e.last_used))

    def _evict(self, entry: _Entry) -> list[Command]:
        """Without it, and those who hold it told; its whole segments become free ones."""
        self._forget(entry.key)
        for holder in entry.holders:
            del self._of_client[holder]
        return [Evict(entry.key), *(Drop(holder) for holder in sorted(entry.holders))]

    def _forget(self, key: str) -> _Entry:
        """Its whole segments become free ones."""
        entry = self._entries.pop(key)
        self._free += entry.whole
        return entry

    def _holders(self) -> list[str]:
        found = []
        for e in sorted(self._entries.values(), key=lambda e: -e.held):
            why = "pinned" if e.key in self._pinned else f"{len(e.clients)} users" if e.ready else "loading"
            if e.clients or not e.ready or e.key in self._pinned:
                found.append(f"{e.name} {_mib(e.held)} ({why})")
        return found[:5]


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB"
