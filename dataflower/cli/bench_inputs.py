"""What `dataflower bench` is told, as values: SLOs, sets of inputs, arrivals, budgets, prices."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflower.cli.durations import duration
from dataflower.cli.exits import WrongUsage
from dataflower.cli.inputs import typed_inputs
from dataflower.config.text import read_text
from dataflower.errors import InvalidArgument, Problem
from dataflower.loadgen.arrivals import Arrivals, Shape, gaps_of
from dataflower.loadgen.replay import Recorded, Replay, Unit, read_trace
from dataflower.planner.table import parse_prices
from dataflower.spec.function import Port
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.units import parse_duration
from dataflower.spec.workflow import Slo

_METRICS = {
    **dict.fromkeys(("e2e", "e2e_ms", "e2el", "latency", "request_latency"), "e2e_ms"),
    **dict.fromkeys(("ttft", "ttft_ms", "time_to_first_token"), "ttft_ms"),
    **dict.fromkeys(("itl", "itl_ms", "inter_token_latency"), "itl_ms"),
    **dict.fromkeys(("tpot", "tpot_ms"), "tpot_ms"),
}
"""Names of limits, and what other benchmarks call them."""


def slo_with(slo: Slo | None, given: Iterable[str]) -> Slo | None:
    """The workflow's SLO with what the command line says over it: `e2e=400ms`, or several, apart by commas or spaces.

    Raises:
        WrongUsage: an unknown limit, or no duration.
    """
    limits: dict[str, float] = {}
    for pair in (p for text in given for p in re.split(r"[,\s]+", text.strip()) if p):
        name, separator, value = pair.replace(":", "=", 1).partition("=")
        metric = _METRICS.get(name)
        if metric is None or not separator:
            hint = did_you_mean(name, _METRICS, "known: e2e, ttft, itl, tpot")
            raise WrongUsage(f"--slo: {pair!r} is not of the form e2e=400ms ({hint})")
        try:
            limits[metric] = parse_duration(float(value) if re.fullmatch(r"\d*\.?\d+", value) else value, "ms")
        except ValueError as error:
            raise WrongUsage(f"--slo: {name}: {error}") from error
        if limits[metric] <= 0:
            raise WrongUsage(f"--slo: {name} must be greater than 0")
    return replace(slo or Slo(), **limits) if limits else slo


def share(text: str | None) -> float | None:
    """`0.99` or `99%`."""
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise WrongUsage(f"--attainment: a share such as 0.99 or 99%, not {text!r}")
    return value


def input_sets(file: Path, common: Mapping[str, Any], ports: Sequence[Port]) -> list[dict[str, Any]]:
    """Sets of inputs from JSON lines, each over the inputs of the command line.

    Raises:
        InvalidArgument: naming file and line.
    """
    found = []
    for line, text in enumerate(read_text(file).splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(str(Problem(str(file), line, 1, f"not JSON: {error}"))) from None
        if not isinstance(row, dict):
            hint = 'each line is an object: {"text": "..."}'
            raise InvalidArgument(str(Problem(str(file), line, 1, "not a JSON object", hint)))
        try:
            found.append({**common, **typed_inputs(row, ports)})
        except InvalidArgument as error:
            raise InvalidArgument(str(Problem(str(file), line, 1, error.message))) from None
    if not found:
        raise InvalidArgument(str(Problem(str(file), 1, 1, "no sets of inputs")))
    return found


def pairs(option: str, given: Iterable[str], form: str) -> dict[str, str]:
    """`NAME=VALUE` options."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise WrongUsage(f"{option}: {text!r} is not of the form {form}")
        found[name] = value
    return found


def budgets(given: Iterable[str]) -> dict[str, float]:
    """Stage -> milliseconds."""
    return {
        stage: duration("--budget", text if not re.fullmatch(r"\d*\.?\d+", text) else f"{text}ms") * 1e3
        for stage, text in pairs("--budget", given, "detect=40ms").items()
    }


def device(prices: Path | None, wanted: str | None) -> tuple[str, float, float] | None:
    """(name, machines, price for an hour) from a price file and `NAME` or `NAMExCOUNT`.

    Raises:
        WrongUsage: no such device, or several and none named.
        ProfileInvalid: the file does not hold together.
    """
    if prices is None:
        if wanted is not None:
            raise WrongUsage("--device goes with --prices FILE")
        return None
    known = parse_prices(read_text(prices), str(prices))
    match = re.fullmatch(r"(.+?)(?:x(\d+(?:\.\d+)?))?", wanted or "")
    name, count = (match[1], float(match[2] or 1)) if match and wanted else (None, 1.0)
    if wanted in known:
        name, count = wanted, 1.0
    if name is None:
        if len(known) > 1:
            raise WrongUsage(
                f"--device: {prices} lists {', '.join(known)}: name the one that served (say, {next(iter(known))})"
            )
        name = next(iter(known))
    if name not in known:
        raise WrongUsage(
            f"--device: no {name!r} in {prices} ({did_you_mean(name, known, 'it lists ' + ', '.join(known))})"
        )
    return name, count, known[name].price


def window(text: str | None) -> tuple[float, float]:
    """`FROM:TO` as seconds; either may be left out."""
    if text is None:
        return 0.0, math.inf
    begin, colon, end = text.partition(":")
    if not colon:
        raise WrongUsage(f"--trace-window: {text!r} is not of the form FROM:TO (say, 60s:5m)")
    return (
        duration("--trace-window", begin) if begin else 0.0,
        duration("--trace-window", end) if end else math.inf,
    )


def trace(
    file: Path,
    *,
    column: str | None,
    unit: Unit,
    window_: str | None,
    speed: float,
    inputs: Iterable[str],
    seed: int,
) -> Recorded:
    """A trace file as it is to be replayed."""
    mapped = pairs("--trace-input", inputs, "max_tokens=GeneratedTokens")
    replay = Replay(column, unit, window(window_), speed, mapped)
    return read_trace(read_text(file), str(file), replay, seed)


def arrivals(
    shape: Shape,
    rate: float,
    *,
    cv: float | None,
    rate_to: float | None,
    burst_s: float,
    every_s: float,
) -> Arrivals:
    """The arrival process that the options describe.

    Raises:
        WrongUsage: options that don't go together.
    """
    if shape in (Shape.RAMP, Shape.BURST) and rate_to is None:
        raise WrongUsage(f"--arrivals {shape.value} wants --rate-to: the rate that it comes to")
    if shape not in (Shape.RAMP, Shape.BURST) and rate_to is not None:
        raise WrongUsage("--rate-to goes with --arrivals ramp or burst")
    if shape is Shape.GAMMA and cv is None:
        raise WrongUsage("--arrivals gamma wants --cv: the coefficient of variation of the gaps (1 is Poisson)")
    if cv is not None and shape in (Shape.CONSTANT, Shape.POISSON):
        raise WrongUsage(f"--cv goes with --arrivals gamma, ramp or burst, not {shape.value}")
    spread = {Shape.CONSTANT: 0.0}.get(shape, 1.0) if cv is None else cv
    return Arrivals(shape, rate, spread, rate_to or 0.0, burst_s, every_s)


def mean_rate(recorded: Recorded) -> float:
    """Of a trace, requests a second."""
    rate = gaps_of(recorded.times)[0]
    if rate <= 0:
        raise InvalidArgument("the trace holds too few events to have a rate: at least three are needed")
    return rate
