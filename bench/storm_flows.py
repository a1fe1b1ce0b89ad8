"""What runs in a kill storm: every way in which arrays go from stage to stage, with what must come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from bench.engine import document
from bench.storm_functions import number_of

AGAIN = "retry: {errors: ['*'], max_attempts: 100000, interval_s: 0.005, max_delay_s: 0.05, jitter: none}"
SCALING = "scaling: {keep_alive_s: 1, max_replicas: 2}"
_MADE = "inputs: {n: inputs.n, nbytes: inputs.nbytes}"


@dataclass(frozen=True)
class Flow:
    """A workflow. `stages`: name -> function, inputs, what else; `away`: those on another host if there is one.

    `expected(n)`: the numbers that each output consists of, in order.
    """

    name: str
    stages: Mapping[str, tuple[str, str, str]]
    outputs: str
    away: tuple[str, ...]
    expected: Callable[[int], Mapping[str, Iterable[int]]]
    times: int = 1
    """Calls in a row: those that are over soon, more often."""

    @property
    def source(self) -> str:
        """The workflow file."""
        lines = [
            f"  {name}: {{function: 'bench.storm_functions:{function}', {inputs}, {rest}{SCALING}, {AGAIN}}}"
            for name, (function, inputs, rest) in self.stages.items()
        ]
        return document(self.name, "{n: int, nbytes: int}", "\n".join(lines), self.outputs)


FLOWS = (
    Flow(  # a fan-out, a stream to the caller, and a gather
        "fan",
        {"make": ("make", _MADE, ""), "pass": ("copy", "inputs: {x: {each: make.chunk}}", "")},
        "{all: {gather: pass.out}, made: make.chunk}",
        ("pass",),
        lambda n: {"all": range(n), "made": range(n)},
    ),
    Flow(  # streams from stage to stage
        "stream",
        {
            "make": ("make", _MADE, ""),
            "flow": ("flow", "inputs: {chunk: make.chunk}", ""),
            "on": ("flow", "inputs: {chunk: flow.chunk}", ""),
        },
        "{all: on.chunk}",
        ("flow",),
        lambda n: {"all": range(n)},
    ),
    Flow(
        "batch",
        {
            "make": ("make", _MADE, ""),
            "some": ("copies", "inputs: {x: {each: make.chunk}}", "batch: {max_size: 4}, "),
        },
        "{all: {gather: some.out}}",
        ("some",),
        lambda n: {"all": range(n)},
    ),
    Flow(  # outputs that go straight to the next container, arrays passed on and new ones in turn
        "chain",
        {
            "a": ("one", _MADE, ""),
            "b": ("forward", "inputs: {x: a.out}", ""),
            "c": ("copy", "inputs: {x: b.out}", ""),
            "d": ("forward", "inputs: {x: c.out}", ""),
        },
        "{all: d.out}",
        ("b", "c"),
        lambda n: {"all": (n,)},
        times=10,
    ),
)


@dataclass
class Tally:
    """What came, against what had to come."""

    lost: int = 0
    doubled: int = 0
    items: int = 0
    calls: int = 0
    words: list[str] = field(default_factory=list)
    """What was wrong, for people."""

    def add(self, flow: Flow, n: int, found: Mapping[str, list[int]], error: str = "") -> None:
        """One invocation. Numbers that are missing are lost, so are those that came torn or out of their order."""
        self.calls += 1
        if error:
            self.words.append(f"{flow.name}: {error}")
        for port, numbers in flow.expected(n).items():
            wanted, came = list(numbers), found.get(port, [])
            once = [number for number in dict.fromkeys(came) if number in wanted]
            self.items += len(wanted)
            self.doubled += len(came) - len(set(came))
            self.lost += len(wanted) - len(once) + (once != sorted(once))
            if came != wanted:
                self.words.append(f"{flow.name}.{port}: {came} in place of {wanted}")

    def join(self, other: Tally) -> None:
        """Add the counts of another."""
        self.lost += other.lost
        self.doubled += other.doubled
        self.items += other.items
        self.calls += other.calls
        self.words += other.words


def number(value: object, nbytes: int) -> int:
    """Which array it is, -1 if it is none or not whole."""
    return number_of(value, nbytes) if hasattr(value, "nbytes") else -1  # type: ignore[arg-type]
