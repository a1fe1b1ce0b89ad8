"""When to plan again because traffic or machine are not what the plan was made for: with hysteresis, and not too often.

The policy looks at arrivals and answers with a rate to plan for; who plans and who applies the plan is not its
business. More traffic than planned costs promises, so it is followed soon; less costs money only, so that is followed
late. So it is with runs that take longer than planned, or no longer do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from dataflower.errors import InvalidArgument

_SCATTER = 0.05
"""Share by which measurements of run times may be above what is planned without a reason to count with more."""


@dataclass(frozen=True, slots=True)
class ReplanPolicy:
    """How eager re-planning is. Durations in seconds.

    Attributes:
        headroom: a plan is made for this multiple of the measured rate.
        step: rates to plan for are powers of this, so that a little more or less traffic asks for the same plan.
        short_s: window in which a rise is noticed; half of it more says how large it is.
        long_s: for so long traffic must have been less before a plan for less is made, which is for the largest rate
            seen in it (in windows of `short_s`): lulls between bursts are no reason to plan for less.
        fall: share by which the wanted rate must be below the planned one for that.
        per_minute: most plans in any 60 s.
        slower: by how much longer than planned some stage must run before a plan counts with it.
        slowest: most that a plan counts runs of a stage as, over the profile.
        dry_run: say what would be done, and do nothing.
    """

    headroom: float = 1.15
    step: float = 1.1
    short_s: float = 15.0
    long_s: float = 300.0
    fall: float = 0.25
    per_minute: int = 2
    slower: float = 1.15
    slowest: float = 4.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not (self.headroom >= 1 and self.step > 1 and 0 <= self.fall < 1):
            raise InvalidArgument("headroom must be at least 1, step more than 1, fall between 0 and 1")
        if not (self.slower > 1 and self.slowest >= 1):
            raise InvalidArgument("slower must be more than 1, and slowest at least 1")
        if not 0 < self.short_s <= self.long_s or self.per_minute < 1:
            raise InvalidArgument("short_s must be above 0 and at most long_s, and per_minute at least 1")

    @property
    def look_s(self) -> float:
        """How often it is worth asking, while there is anything to ask."""
        return self.short_s / 15


@dataclass(frozen=True, slots=True)
class Decision:
    """Plan for `rate` invocations a second from now on. `measured`: what came; `apply`: False in a dry run.

    `slowdown`: what to count run times as, over the profile, for stages where that is more than 1.
    """

    at: float
    rate: float
    measured: float
    reason: str
    apply: bool
    slowdown: Mapping[str, float] = field(default_factory=dict)


class Replanner:
    """Watches the arrivals of one workflow. Pure: the caller brings the time."""

    BUCKETS = 60

    def __init__(
        self, policy: ReplanPolicy, rate: float, now: float, slowdown: Mapping[str, float] | None = None
    ) -> None:
        """`rate`: what the present plan was made for; `slowdown`: what it counts runs as, over the profile."""
        self.rate = rate
        self.slowdown: Mapping[str, float] = dict(slowdown or {})
        self._expected = rate
        """Arrivals a second that chance is taken to play around: at first nobody knows of any headroom in the plan."""
        self._policy = policy
        self._width = min(policy.long_s / self.BUCKETS, policy.look_s)
        self._buckets: deque[tuple[int, int]] = deque()
        """Number of the bucket and arrivals in it, oldest first; empty ones are left out."""
        self._began = now
        self._changes: deque[float] = deque()
        self._high_since: float | None = None
        self._low_since: float | None = None
        self._slow_since: float | None = None
        self._quick_since: float | None = None
        self._longest: dict[str, float] = {}
        """Since then, by stage: the most that runs took over the profile."""

    def arrived(self, now: float, count: int = 1) -> None:
        """So many invocations came, refused ones included: what is wanted counts, not what was served."""
        number = int(now / self._width)
        if self._buckets and self._buckets[-1][0] == number:
            count += self._buckets.pop()[1]
        self._buckets.append((number, count))

    def measured(self, now: float) -> float | None:
        """Invocations a second, lately; None as long as nobody has watched for long enough."""
        return self._measured(now, self._policy.short_s)

    def is_settled(self, now: float) -> bool:
        """Whether nothing will change until the next arrival, so that nobody need ask before."""
        self._forget(now)
        return not self._buckets and self._rounded(0.0) > self.rate * (1 - self._policy.fall)

    def decide(self, now: float, slowdown: Mapping[str, float] | None = None) -> Decision | None:
        """What to do now, to be asked every `look_s` until it `is_settled`.

        `slowdown`: measured over profiled run time by stage, where it is known.
        """
        self._forget(now)
        measured = slowdown or {}
        return self._decide_rate(now, measured) or self._decide_slowdown(now, measured)

    def _decide_rate(self, now: float, measured: Mapping[str, float]) -> Decision | None:
        policy = self._policy
        short = self._measured(now, policy.short_s)
        if short is not None and short > self.rate and self._is_certain(short, policy.short_s):
            return self._risen(now, measured)
        self._high_since = None
        peak = self._peak() if now - self._began >= policy.long_s else math.inf
        if math.isinf(peak) or self._rounded(peak * policy.headroom) > self.rate * (1 - policy.fall):
            self._low_since = None
            return None
        if self._low_since is None:
            self._low_since = now
        if now - self._low_since < policy.short_s:  # windows that saw a bit of the busier time are still remembered
            return None
        return self._change(now, peak, "less than planned", self._counted(measured))

    def _decide_slowdown(self, now: float, measured: Mapping[str, float]) -> Decision | None:
        policy = self._policy
        over = {name: value / self.slowdown.get(name, 1.0) for name, value in measured.items()}
        worst = max(over, key=lambda name: over[name], default="")
        wanted = self._counted(measured)
        if worst and over[worst] >= policy.slower and wanted != self.slowdown:
            self._quick_since = None
            if self._slow_since is None:
                self._slow_since = now
            if now - self._slow_since < policy.short_s / 2:
                return None
            reason = f"runs of stage {worst!r} take {over[worst]:.2f} times what is planned"
            return self._change(now, None, reason, wanted)
        self._slow_since = None
        if not self._is_quicker(measured):
            self._quick_since = None
            return None
        if self._quick_since is None:
            self._quick_since, self._longest = now, {}
        for name, value in measured.items():
            self._longest[name] = max(value, self._longest.get(name, 0.0))
        if now - self._quick_since < policy.long_s:
            return None
        return self._change(now, None, "runs take less than is planned", self._counted(self._longest))

    def _is_quicker(self, measured: Mapping[str, float]) -> bool:
        """Whether a plan would count some stage's runs as clearly shorter, and none as longer."""
        pairs = [(self._counted({name: measured.get(name, was)}), was) for name, was in self.slowdown.items()]
        found = [(max(counted.values(), default=1.0), was) for counted, was in pairs]
        return all(new <= was for new, was in found) and any(new <= was / self._policy.slower for new, was in found)

    def _counted(self, measured: Mapping[str, float]) -> dict[str, float]:
        """What a plan would count runs as: the next power of `step`, so that a little more asks for the same."""
        found = dict(self.slowdown)
        for name, value in measured.items():
            now = found.pop(name, 1.0)
            if now / self._policy.slower < value <= now * (1 + _SCATTER):
                rounded = now
            else:
                rounded = min(self._policy.slowest, self._rounded(value / (1 + _SCATTER)))
            if rounded > 1:
                found[name] = rounded
        return found

    def failed(self, rate: float, slowdown: Mapping[str, float] | None = None) -> None:
        """There is no new plan, and the next attempt may have one: the plan for `rate` goes on."""
        self.rate = self._expected = rate
        self.slowdown = dict(slowdown or {})

    def _risen(self, now: float, slowdown: Mapping[str, float]) -> Decision | None:
        """More is certain. How much is known when the window, or half of it, holds nothing else."""
        half = self._policy.short_s / 2
        if self._high_since is None:
            self._high_since = now
        if now - self._high_since < half:
            return None
        recent = self._measured(now, half)
        if recent is None or recent <= self.rate:  # it was a burst, and is over
            self._high_since = None
            return None
        return self._change(now, recent, "more than planned", self._counted(slowdown))

    def _change(
        self, now: float, measured: float | None, reason: str, slowdown: Mapping[str, float]
    ) -> Decision | None:
        """`measured`: the rate that is wanted; None: the present one."""
        while self._changes and self._changes[0] <= now - 60.0:
            self._changes.popleft()
        if len(self._changes) >= self._policy.per_minute:
            return None
        self._changes.append(now)
        self._high_since = self._low_since = self._slow_since = self._quick_since = None
        if measured is not None:
            self.rate, self._expected = self._rounded(measured * self._policy.headroom), measured
        self.slowdown = slowdown
        came = measured if measured is not None else self._measured(now, self._policy.short_s / 2) or 0.0
        return Decision(now, self.rate, came, reason, not self._policy.dry_run, slowdown)

    def _is_certain(self, rate: float, seconds: float) -> bool:
        """Whether chance alone would bring so many only once in a thousand windows (3 sigma)."""
        expected = self._expected * seconds
        return rate * seconds > expected + 3 * math.sqrt(expected)

    def _measured(self, now: float, seconds: float) -> float | None:
        """Arrivals a second in the last so many; None as long as nobody has watched for that long."""
        if now - self._began < seconds:
            return None
        first = math.ceil((now - seconds) / self._width - 1e-9)
        span = now - first * self._width
        return sum(count for number, count in self._buckets if number >= first) / span

    def _peak(self) -> float:
        """The most arrivals a second in any window of `short_s` among those that are remembered."""
        length = max(1, round(self._policy.short_s / self._width))
        window: deque[tuple[int, int]] = deque()
        count = most = 0
        for number, arrivals in self._buckets:
            window.append((number, arrivals))
            count += arrivals
            while window[0][0] <= number - length:
                count -= window.popleft()[1]
            most = max(most, count)
        return most / (length * self._width)

    def _forget(self, now: float) -> None:
        oldest = int((now - self._policy.long_s - self._policy.short_s) / self._width)
        while self._buckets and self._buckets[0][0] <= oldest:
            self._buckets.popleft()

    def _rounded(self, rate: float) -> float:
        """The next power of `step`; never nothing, as a plan for no traffic would have no containers."""
        step = math.log(self._policy.step)
        return math.exp(math.ceil(math.log(max(rate, 1e-3)) / step - 1e-9) * step)
