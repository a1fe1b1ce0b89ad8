"""`dataflower bench` at work: a server found or started, the load made ready, the bench run."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from dataflower.cli import bench_inputs
from dataflower.cli.bench_options import Asked, Calls, Recording, Traffic
from dataflower.cli.bench_progress import watch
from dataflower.cli.connect import client_config
from dataflower.cli.durations import duration, limit
from dataflower.cli.exits import WrongUsage
from dataflower.cli.inputs import parse_inputs
from dataflower.cli.local import run_loop
from dataflower.cli.served import Served, serve_apart
from dataflower.cli.terminal import terminal
from dataflower.cli.workflows import beside, load_file
from dataflower.clock import SystemClock
from dataflower.config.compose import compose
from dataflower.config.settings import DEFAULT_HTTP_PORT, Config
from dataflower.config.text import read_text
from dataflower.errors import DataflowerError, InvalidArgument, Unavailable
from dataflower.gateway.async_client import AsyncClient
from dataflower.gateway.messages import WorkflowInfo
from dataflower.host.inputs import split_inputs
from dataflower.loadgen.arrivals import Arrivals, Shape
from dataflower.loadgen.assess import Terms
from dataflower.loadgen.http_sender import encode_http
from dataflower.loadgen.messages import Door, Protocol
from dataflower.loadgen.replay import Recorded
from dataflower.loadgen.report import Report, Settings
from dataflower.loadgen.sender import encode
from dataflower.loadgen.session import Load, Session, first_calls
from dataflower.loadgen.sweep import Sweep
from dataflower.planner.document import PlanDocument, parse_plan
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.workflow import Slo

DURATION_S = 30.0
SAFE_SHARE = 0.5
"""Without a rate: this share of what one call after the other would give."""


def run(asked: Asked) -> Report:
    """Do what was asked.

    Raises:
        WrongUsage: options that don't go together.
        DataflowerError: no server, no such workflow, inputs that don't fit, and so on.
    """
    ready = _Ready.of(asked)  # what can be wrong is found before anything is started
    with _server(asked, ready) as (config, served, source):
        report = run_loop(_bench(asked, ready, config, served, source))
    return msgspec.structs.replace(report, command=shlex.join(["dataflower", *sys.argv[1:]]))


@dataclass(frozen=True, slots=True)
class _Ready:
    """What the options mean, as far as that can be said without a server."""

    process: Arrivals
    """With a rate of 1 if none was given."""
    recorded: Recorded | None
    duration_s: float | None
    warmup_s: float | None
    deadline_s: float | None
    drain_s: float
    target: float | None
    budgets_ms: Mapping[str, float]
    device: tuple[str, float, float] | None
    plan: PlanDocument | None

    def by(self, info: WorkflowInfo) -> _Ready:
        """With the budgets and the cost of the plan that the server runs the workflow by, if none was named."""
        if self.plan is not None or not info.plan:
            return self
        plan = parse_plan(info.plan, "<plan>")
        cost = ("all machines of the plan", 1.0, plan.cost_per_hour)
        return replace(self, budgets_ms={**_budgets(plan), **self.budgets_ms}, device=self.device or cost, plan=plan)

    @staticmethod
    def of(asked: Asked) -> _Ready:
        _check_arrivals(asked.traffic, asked.recording)
        calls, span, terms = asked.calls, asked.span, asked.terms
        bench_inputs.slo_with(None, terms.slo)
        recorded = _recorded(asked.recording, span.seed)
        plan = None if terms.plan is None else parse_plan(read_text(terms.plan), str(terms.plan))
        device = bench_inputs.device(terms.prices, terms.device)
        budgets_ms = bench_inputs.budgets(terms.budget)
        if plan is not None:
            budgets_ms = _budgets(plan) | budgets_ms
            device = device or ("all machines of the plan", 1.0, plan.cost_per_hour)
        return _Ready(
            Arrivals(Shape.TRACE) if recorded is not None else _process(asked.traffic, span.seed),
            recorded,
            limit("--duration", span.duration),
            None if span.warmup is None else duration("--warmup", span.warmup),
            limit("--deadline", calls.deadline),
            duration("--drain", calls.drain),
            bench_inputs.share(terms.attainment),
            budgets_ms,
            device,
            plan,
        )


def _check_arrivals(traffic: Traffic, recording: Recording) -> None:
    if traffic.rate is not None and not traffic.rate > 0:
        raise WrongUsage(f"--rate must be greater than 0, not {traffic.rate:g}")
    if traffic.arrivals is Shape.TRACE and recording.trace is None:
        raise WrongUsage("--arrivals trace wants --trace FILE")
    if traffic.arrivals not in (None, Shape.TRACE) and recording.trace is not None:
        raise WrongUsage(f"--trace FILE gives the arrivals: leave out --arrivals {traffic.arrivals.value}")


def _budgets(plan: PlanDocument) -> dict[str, float]:
    return {name: stage.budget_ms for name, stage in plan.stages.items()}


def _recorded(recording: Recording, seed: int) -> Recorded | None:
    if recording.trace is None:
        return None
    return bench_inputs.trace(
        recording.trace,
        column=recording.trace_column,
        unit=recording.trace_unit,
        window_=recording.trace_window,
        speed=recording.speed,
        inputs=recording.trace_input,
        seed=seed,
    )


def _process(traffic: Traffic, seed: int) -> Arrivals:
    process = bench_inputs.arrivals(
        traffic.arrivals or Shape.POISSON,
        traffic.rate or 1.0,
        cv=traffic.cv,
        rate_to=traffic.rate_to,
        burst_s=duration("--burst", traffic.burst),
        every_s=duration("--every", traffic.every),
    )
    process.times(0.01, seed)  # says what is wrong with it
    return process


@contextmanager
def _server(asked: Asked, ready: _Ready) -> Iterator[tuple[Config, Served | None, str]]:
    """(configuration with the server's address, the server if it was started here, source to apply to it)."""
    place = asked.place
    is_file = asked.workflow.endswith((".yaml", ".yml")) or Path(asked.workflow).is_file()
    if place.server is not None and (is_file or place.local):
        raise WrongUsage(
            f"--server wants the name of a workflow there; put a file on it first: dataflower apply {asked.workflow}"
            if is_file
            else "--server and --local exclude each other"
        )
    if not is_file:
        if place.local:
            raise WrongUsage(f"--local wants a workflow file, and there is no file {asked.workflow!r}")
        if place.profile is not None:
            raise WrongUsage("--profile goes with a workflow file; a server has its workflows with a profile applied")
        yield client_config(place.server, place.config), None, ""
        return
    settings = beside(compose({"code_path": place.code_path}, file=place.config).config, [Path(asked.workflow)])
    workflow, source = load_file(Path(asked.workflow), settings, place.profile)
    _check_budgets(ready.budgets_ms, [name for name, stage in workflow.stages.items() if not stage.is_switch])
    given = parse_inputs(asked.inputs, workflow.inputs)
    if asked.calls.input_file is None and not asked.recording.trace_input:
        split_inputs(workflow.name, {port.name: port for port in workflow.inputs}, given)
    places = [argument for place in settings.code_path for argument in ("--code-path", str(Path(place).absolute()))]
    terminal().note("starting a server")
    with serve_apart(places) as served:
        yield replace(settings, server=served.address, api_key="", tls_ca_file=None), served, source


async def _bench(asked: Asked, ready: _Ready, config: Config, served: Served | None, source: str) -> Report:
    client = AsyncClient(config.server, api_key=config.api_key or None, ca_file=config.tls_ca_file)
    async with client:
        name = asked.workflow if served is None else (await client.apply(source, plan=asked.terms.plan)).name
        info = await client.workflow(name)
        ready = ready.by(info)
        sets, picks = _inputs(asked, ready, info)
        rate = await _called_first(asked, ready, client, info, sets[0])
    load = _load(asked, ready, rate, picks)
    streams = any(port.stream for port in info.outputs)
    stream = streams if asked.calls.stream is None else asked.calls.stream
    door = Door(
        config.server,
        name,
        config.api_key,
        "" if config.tls_ca_file is None else str(config.tls_ca_file),
        _http_url(asked.calls, config, served),
        stream=stream,
    )
    if asked.calls.protocol is Protocol.HTTP:
        load = replace(load, bodies=tuple(encode_http(inputs, stream=stream) for inputs in sets))
    else:
        load = replace(load, bodies=tuple(encode(name, inputs, stream=stream) for inputs in sets))
    session = Session(
        door,
        load,
        _terms(
            asked, ready, info, door, server="a local server" if served is not None else door.address, sets=len(sets)
        ),
        sets[0],
        deadline_s=ready.deadline_s,
        drain_s=ready.drain_s,
        generators=asked.calls.generators,
        watch=watch(terminal(), load, sweeping=asked.search.sweep),
    )
    terminal().note(f"load: {session.described(load)}; seed {asked.span.seed}; {load.warmup_s:g} s of warm-up")
    async with _stoppable(session, served):
        if asked.search.sweep:
            report = await session.sweep(Sweep(rate, repeats=asked.search.repeats, tolerance=asked.search.tolerance))
        else:
            report = await session.once()
    if served is not None and report.verdict.cut_short and not session.stop.is_set():
        terminal().note(f"the local server went away; the last that it said:\n{served.tail()}".rstrip())
    return report


def _http_url(calls: Calls, config: Config, served: Served | None) -> str:
    """Empty for gRPC."""
    if calls.protocol is not Protocol.HTTP:
        if calls.http_url is not None:
            raise WrongUsage("--http-url goes with --protocol http")
        return ""
    if served is not None:
        return served.http_url
    if calls.http_url is not None:
        return calls.http_url
    if config.server.startswith("unix:"):
        raise WrongUsage("--protocol http wants --http-url: the server's gRPC listens on a unix socket")
    scheme = "http" if config.tls_ca_file is None else "https"
    return f"{scheme}://{config.server.rpartition(':')[0]}:{DEFAULT_HTTP_PORT}"


def _inputs(asked: Asked, ready: _Ready, info: WorkflowInfo) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """Sets of inputs, and for a trace that brings inputs which set each arrival takes."""
    common = parse_inputs(asked.inputs, info.inputs)
    ports = {port.name: port for port in info.inputs}
    sets = [common]
    if asked.calls.input_file is not None:
        sets = bench_inputs.input_sets(asked.calls.input_file, common, info.inputs)
    picks: tuple[int, ...] = ()
    if ready.recorded is not None and ready.recorded.inputs:
        if len(sets) > 1:
            raise WrongUsage("--input-file and --trace-input both say what the inputs are: one of them")
        sets, picks = _from_trace(ready.recorded, sets[0], info)
    for inputs in sets:
        split_inputs(info.name, ports, inputs)
    return sets, picks


def _from_trace(
    recorded: Recorded, common: Mapping[str, Any], info: WorkflowInfo
) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    from dataflower.cli.inputs import typed_inputs

    known: dict[tuple[Any, ...], int] = {}
    sets: list[dict[str, Any]] = []
    picks = []
    for row in recorded.inputs:
        key = tuple(map(repr, row.values()))
        if key not in known:
            known[key] = len(sets)
            sets.append({**common, **typed_inputs(row, info.inputs)})
        picks.append(known[key])
    return sets, tuple(picks)


async def _called_first(
    asked: Asked, ready: _Ready, client: AsyncClient, info: WorkflowInfo, inputs: Mapping[str, Any]
) -> float:
    """Call the workflow before the load, and return the rate that the load is to have."""
    planned = None if ready.plan is None else ready.plan.rate_per_s
    needs_rate = asked.traffic.rate is None and ready.recorded is None and planned is None
    terminal().note("first calls, which start what has to be started")
    seconds, failure = await first_calls(client, info.name, inputs, 4 if needs_rate else 1, SystemClock())
    if failure:
        terminal().note(f"a first call failed: {failure}")
    if asked.traffic.rate is not None:
        return asked.traffic.rate
    if ready.recorded is not None:
        return bench_inputs.mean_rate(ready.recorded)
    if planned is not None:
        return planned
    if not seconds:
        raise InvalidArgument(f"no first call succeeded, so that no rate can be guessed (--rate): {failure}")
    warm = min(seconds)
    rate = float(f"{SAFE_SHARE / warm:.2g}")
    terminal().note(f"a call takes {warm * 1e3:.1f} ms: loading with {rate:g}/s (--rate sets another)")
    return rate


def _load(asked: Asked, ready: _Ready, rate: float, picks: Sequence[int]) -> Load:
    """Everything but the bodies."""
    process = replace(ready.process, rate=rate)
    if ready.recorded is not None:
        own = bench_inputs.mean_rate(ready.recorded)
        length = float(ready.recorded.times[-1]) * own / rate + 1 / rate
    elif asked.span.requests is not None:
        length = 3 * asked.span.requests / rate + 10  # long enough for all of them
    else:
        length = DURATION_S
    length = length if ready.duration_s is None else ready.duration_s
    warmup_s = min(10.0, max(1.0, length / 10)) if ready.warmup_s is None else ready.warmup_s
    return Load(
        process,
        (),
        length,
        warmup_s,
        asked.span.seed,
        shuffled=asked.calls.shuffle,
        recorded=ready.recorded,
        picks=tuple(picks),
        requests=asked.span.requests,
    )


def _check_budgets(budgets_ms: Mapping[str, float], stages: Sequence[str]) -> None:
    for stage in budgets_ms:
        if stage not in stages:
            raise WrongUsage(f"--budget: no stage {stage!r} ({did_you_mean(stage, stages, ', '.join(stages))})")


def _terms(asked: Asked, ready: _Ready, info: WorkflowInfo, door: Door, *, server: str, sets: int) -> Terms:
    settings = Settings(
        workflow=info.name,
        version=info.version,
        server=server,
        protocol=Protocol.HTTP.value if door.http_url else Protocol.GRPC.value,
        arrivals="",
        rate=0.0,
        seed=asked.span.seed,
        duration_s=0.0,
        warmup_s=0.0,
        generators=0,
        streaming=door.stream,
        deadline_s=ready.deadline_s,
        input_sets=sets,
        trace_file="" if asked.recording.trace is None else asked.recording.trace.name,
        accepted_only=asked.terms.accepted_only,
    )
    _check_budgets(ready.budgets_ms, [stage.stage for stage in info.stages])
    slo = info.slo
    if ready.plan is not None and (slo is None or slo.e2e_ms is None):
        slo = replace(slo or Slo(), e2e_ms=ready.plan.slo_ms)
    slo = bench_inputs.slo_with(slo, asked.terms.slo)
    return Terms(settings, slo, ready.budgets_ms, ready.device, ready.target)


@asynccontextmanager
async def _stoppable(session: Session, served: Served | None) -> AsyncIterator[None]:
    """Ctrl-C and SIGTERM end the bench with what was measured, a second one at once. So does the server's death."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def on_signal() -> None:
        if session.stop.is_set():
            task.cancel()
        else:
            terminal().note("stopping: what was measured so far is reported (once more stops at once)")
            session.stop.set()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except DataflowerError as error:
        if served is not None and isinstance(error, Unavailable):
            error.message += f"\n{served.tail()}".rstrip()
        raise
    finally:
        for number in signals:
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(number)
