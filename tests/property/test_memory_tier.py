"""The host memory tier under arbitrary events: never over its cap, nobody forgotten, nothing loaded twice."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataflower.checkpoint.layout import SEGMENT_BYTES, TAIL_BYTES, pieces
from dataflower.checkpoint.tier_commands import Command, Drop, Evict, Grant, Load, Locate, Refuse, Trim
from dataflower.checkpoint.tier_events import (
    Asked,
    Event,
    Gone,
    Loaded,
    LoadFailed,
    Located,
    NoRoom,
    NotLocated,
    Pins,
    Prefaulted,
    Valued,
)
from dataflower.checkpoint.tiers import MemoryTier
from dataflower.errors import Code

CAP = 10 * SEGMENT_BYTES
MODELS = [f"m{i}" for i in range(6)]
SIZES = [1000, TAIL_BYTES, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 5000, 6 * SEGMENT_BYTES, 11 * SEGMENT_BYTES]


class Host(RuleBasedStateMachine):
    """Plays the store: obeys the commands, and keeps a ledger of its own of memory and of who got what."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = MemoryTier(CAP)
        self.now = 0.0
        self.asked: dict[int, str] = {}
        self.granted: dict[int, str] = {}
        self.locating: list[str] = []
        self.loading: list[str] = []
        self.memory: dict[str, tuple[int, int]] = {}
        """Key -> (segments, tail bytes)."""
        self.ready: set[str] = set()
        self.reserved: dict[str, int] = {}
        self.free = 0
        self.used: dict[str, float] = {}
        self.pinned: frozenset[str] = frozenset()
        self.clients = 0
        self.sizes: dict[str, int] = {}
        self.density: dict[int, float] = {}
        """Of clients that only want a model to be there."""

    def users(self) -> set[str]:
        """What somebody needs."""
        return {key for client, key in self.granted.items() if client not in self.density}

    def worth(self, key: str) -> float:
        """The most that a byte of an unused model is to those who hold it."""
        return max((self.density[c] for c, k in self.granted.items() if k == key and c in self.density), default=-1.0)

    def tell(self, event: Event) -> list[Command]:
        self.now += 1.0
        commands = self.tier.handle(event, self.now)
        for command in commands:
            self.obey(command)
        return commands

    def obey(self, command: Command) -> None:
        match command:
            case Locate(model):
                assert model not in self.locating
                self.locating.append(model)
            case Load(key, recycled):
                assert key not in self.memory, "loaded twice"
                whole, tail = pieces(self.sizes[key])
                assert recycled <= min(whole, self.free)
                self.free -= recycled
                self.memory[key] = (whole, tail)
                self.loading.append(key)
            case Evict(key):
                assert key not in self.pinned or key in self.failing
                assert key not in self.users(), "evicted in use"
                whole, _ = self.memory.pop(key)
                self.free += whole
                self.ready.discard(key)
            case Trim(segments):
                assert 0 < segments <= self.free
                self.free -= segments
            case Grant(client, key):
                assert key in self.ready
                assert client in self.asked
                self.granted[client] = key
                del self.asked[client]
                self.used[key] = self.now
            case Drop(client):
                assert client in self.density
                assert self.granted[client] not in self.memory, "dropped for nothing"
                del self.granted[client]
            case Refuse(client, code, message):
                assert message
                assert code is not Code.INTERNAL
                del self.asked[client]

    failing: frozenset[str] = frozenset()

    @rule(model=st.sampled_from(MODELS))
    def ask(self, model: str) -> None:
        self.clients += 1
        self.asked[self.clients] = model
        self.tell(Asked(self.clients, model))

    @rule(model=st.sampled_from(MODELS), density=st.sampled_from([0.0, 1.0, 2.0]))
    def hold(self, model: str, density: float) -> None:
        self.clients += 1
        self.asked[self.clients] = model
        self.density[self.clients] = density
        self.tell(Asked(self.clients, model, density))

    @precondition(lambda self: self.density)
    @rule(data=st.data(), density=st.sampled_from([0.0, 1.0, 2.0]))
    def revalue(self, data: st.DataObject, density: float) -> None:
        client = data.draw(st.sampled_from(sorted(self.density)))
        if client in self.asked or client in self.granted:
            self.density[client] = density
            self.tell(Valued(client, density))

    @precondition(lambda self: self.locating)
    @rule(data=st.data(), found=st.booleans(), changed=st.booleans(), remote=st.booleans())
    def answer(self, data: st.DataObject, found: bool, changed: bool, remote: bool) -> None:
        model = data.draw(st.sampled_from(self.locating))
        self.locating.remove(model)
        if not found:
            self.tell(NotLocated(model, Code.NOT_FOUND, "no such model"))
            return
        key = f"{model}-{'new' if changed else 'old'}"
        self.sizes[key] = SIZES[MODELS.index(model)]
        before = {k: (self.worth(k), self.used.get(k, 0)) for k in self.memory}
        asks = [client for client, wanted in self.asked.items() if wanted == model]
        needed = any(client not in self.density for client in asks)
        most = max((self.density.get(client, 9.0) for client in asks), default=-1.0)
        commands = self.tell(Located(model, key, self.sizes[key], remote))
        evicted = [c.key for c in commands if isinstance(c, Evict)]
        fixed = self.users() | self.pinned
        for victim in evicted:  # what is held least goes first, and of that the longest unused
            others = [k for k in before if k in self.memory and k in self.ready and k not in fixed]
            assert all(before[victim] <= before[k] for k in others if k != key)
            assert needed or before[victim][0] < most, "one wish drove out another that is worth as much"

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), good=st.booleans())
    def finish(self, data: st.DataObject, good: bool) -> None:
        key = data.draw(st.sampled_from(self.loading))
        self.loading.remove(key)
        if good:
            self.ready.add(key)
            self.used[key] = self.now + 1.0
            self.tell(Loaded(key))
        else:
            self.failing = frozenset([key])
            self.tell(LoadFailed(key, Code.FAILED_PRECONDITION, "damaged"))
            self.failing = frozenset()

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def lack(self, data: st.DataObject) -> None:
        """There is less memory than the cap says: one that nobody uses leaves, the least dense, for what is denser."""
        key = data.draw(st.sampled_from(self.loading))
        asks = [client for client, wanted in self.asked.items() if key in {f"{wanted}-old", f"{wanted}-new"}]
        most = max((self.density.get(client, 9.0) for client in asks), default=-1.0)
        fixed = self.users() | self.pinned
        idle = {k: (self.worth(k), self.used.get(k, 0)) for k in self.ready if k not in fixed}
        evicted = [command.key for command in self.tell(NoRoom(key)) if isinstance(command, Evict)]
        assert len(evicted) <= 1
        assert all(idle[victim] == min(idle.values()) and idle[victim][0] < most for victim in evicted)
        if any(client not in self.density for client in asks) and not evicted:
            waiting = self.tier._entries[key].waiting
            assert not idle or not any(client not in self.density for client in waiting)

    @precondition(lambda self: self.asked or self.granted)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted([*self.asked, *self.granted])))
        self.asked.pop(client, None)
        key = self.granted.pop(client, None)
        if key is not None:
            self.used[key] = self.now + 1.0
        self.tell(Gone(client))

    @rule(keys=st.frozensets(st.sampled_from([f"{m}-{v}" for m in MODELS for v in ("old", "new")]), max_size=3))
    def pin(self, keys: frozenset[str]) -> None:
        self.pinned = keys
        self.tell(Pins(keys))

    @rule(nbytes=st.integers(0, 2 * CAP))
    def prefault(self, nbytes: int) -> None:
        count = min(2, self.tier.spare(nbytes))
        self.free += count
        self.tell(Prefaulted(count))

    @invariant()
    def memory_stays_under_the_cap(self) -> None:
        held = self.free * SEGMENT_BYTES + sum(w * SEGMENT_BYTES + t for w, t in self.memory.values())
        assert held <= self.tier.held_bytes <= CAP  # what waits for its turn is counted there already

    @invariant()
    def one_load_from_each_source(self) -> None:
        assert len(self.loading) <= 2

    @invariant()
    def whoever_waits_has_something_to_wait_for(self) -> None:
        if self.asked:
            assert self.locating or self.loading

    def teardown(self) -> None:
        """In the end everybody has an answer, and all memory can be had again."""
        while self.locating or self.loading:
            for model in list(self.locating):
                self.locating.remove(model)
                self.tell(NotLocated(model, Code.NOT_FOUND, "gone"))
            for key in list(self.loading):
                self.loading.remove(key)
                self.ready.add(key)
                self.tell(Loaded(key))
        assert not self.asked
        assert not any(self.tier.is_parked(key) for key in self.sizes)
        for client in list(self.granted):
            del self.granted[client]
            self.tell(Gone(client))
        self.pinned = frozenset()
        self.tell(Pins(self.pinned))
        self.sizes["all"] = CAP
        self.asked[-1] = "all"
        self.tell(Asked(-1, "all"))
        self.density.clear()
        self.tell(Located("all", "all", CAP))
        assert self.loading == ["all"]
        assert self.memory.keys() == {"all"}


TestMemoryTier = Host.TestCase
TestMemoryTier.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
