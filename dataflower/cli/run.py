"""`dataflower run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.options import CodePath, ConfigFile, Deadline, Inputs, Output, Profile
from dataflower.cli.terminal import Format, emit, show, terminal

if TYPE_CHECKING:
    from dataflower.cli.outcome import Outcome
    from dataflower.cli.screen import Screen
    from dataflower.host.api import HostApi
    from dataflower.host.settings import HostConfig
    from dataflower.spec.workflow import Workflow


def run(
    file: Annotated[Path, typer.Argument(help="Workflow file.", show_default=False)],
    inputs: Inputs = None,
    *,
    profile: Profile = None,
    deadline: Deadline = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Draw a line for each task; with -o json, print all record points.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="Run it by this plan (`dataflower plan -o yaml`).", show_default=False),
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Don't wait for the containers that the workflow keeps (`min_replicas`).")
    ] = False,
    check_slo: Annotated[bool, typer.Option("--check-slo", help="End with 3 if the SLO was missed.")] = False,
    code_path: CodePath = None,
    config: ConfigFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Run a workflow once, in this process, without a server.

    The containers that the workflow keeps are started first, as a server would have them. Stream outputs appear as
    they come; then the results (stdout), the timeline and the SLO verdict (stderr).

    Example: dataflower run workflows/wordcount.yaml text=@book.txt
    """
    import tempfile

    from dataflower.cli.durations import limit
    from dataflower.cli.inputs import named_files, parse_inputs
    from dataflower.cli.local import run_loop
    from dataflower.cli.outcome import want_slo
    from dataflower.cli.screen import screen
    from dataflower.cli.settings import composed
    from dataflower.cli.workflows import beside, load_file
    from dataflower.config.convert import host_config
    from dataflower.host.inputs import split_inputs

    settings = beside(composed({"code_path": code_path}, config).config, [file])
    workflow, source = load_file(file, settings, profile)
    if check_slo:
        want_slo(workflow.name, workflow.slo)
    given = parse_inputs(inputs or [], workflow.inputs)
    split_inputs(workflow.name, {port.name: port for port in workflow.inputs}, given)  # before anything is started
    deadline_s = limit("--deadline", deadline)
    as_text = output is Format.TABLE
    plan_text = None if plan is None else _plan_text(plan, workflow)
    shown = screen(terminal(), items=as_text)
    with tempfile.TemporaryDirectory(prefix="dataflower-run-") as logs:
        host = host_config(
            settings,
            state_dir=None,
            log_dir=Path(logs) if shown.is_live else None,
            readable_paths=(*settings.readable_paths, *named_files(given)),
        )
        outcome = run_loop(
            _once(
                host,
                workflow,
                source,
                given,
                screen=shown,
                cold=cold,
                deadline_s=deadline_s,
                as_text=as_text,
                plan=plan_text,
            )
        )
        if shown.is_live:
            _print_logs(Path(logs), workflow.name)
    _report(outcome, output, trace=trace)
    if outcome.failure is not None:
        raise typer.Exit(ExitCode.FAILED)
    if check_slo and not outcome.slo_met:
        raise typer.Exit(ExitCode.SLO_NOT_MET)


def _plan_text(plan: Path, workflow: Workflow) -> str:
    """A plan file that goes with the workflow, looked at before anything is started."""
    from dataflower.cli.workflows import read_file
    from dataflower.host.plans import read_plan

    text = read_file(plan)
    read_plan(text, str(plan), workflow)
    return text


async def _once(
    config: HostConfig,
    workflow: Workflow,
    source: str,
    inputs: dict[str, Any],
    *,
    screen: Screen,
    cold: bool,
    deadline_s: float | None,
    as_text: bool,
    plan: str | None,
) -> Outcome:
    from dataflower.cli import local

    with screen:
        async with local.open_host(config) as host:
            await host.apply(workflow, source, plan=plan)
            if not cold:
                await _warm_up(host, workflow.name, screen)
            return await follow(host, workflow, inputs, screen=screen, deadline_s=deadline_s, as_text=as_text)


async def _warm_up(host: HostApi, workflow: str, screen: Screen) -> None:
    from dataflower.clock import SystemClock

    clock = SystemClock()
    begun = clock.monotonic()
    screen.stages(host.workflow(workflow).stages)
    await host.wait_ready(workflow)
    kept = [stage.stage for stage in host.workflow(workflow).stages if stage.idle]
    if kept:
        message = f"{', '.join(kept)} ready after {clock.monotonic() - begun:.1f} s"
        (screen.note if screen.is_live else terminal().note)(message)


async def follow(
    host: HostApi,
    workflow: Workflow,
    inputs: dict[str, Any],
    *,
    screen: Screen,
    deadline_s: float | None,
    as_text: bool,
) -> Outcome:
    """Invoke, show what comes, and collect it; `as_text`: what was shown as it came is not kept."""
    import asyncio
    from contextlib import suppress

    from dataflower.cli.outcome import Outcome
    from dataflower.cli.values import plain, text
    from dataflower.clock import SystemClock
    from dataflower.core.verdict import judge
    from dataflower.errors import InvocationFailed

    clock = SystemClock()
    begun = clock.monotonic()
    deadline = None if deadline_s is None else begun + deadline_s
    invocation = await host.invoke(workflow.name, inputs, deadline=deadline)
    outcome = Outcome(invocation.id, workflow.name)
    times: dict[str, list[float]] = {}
    watcher = asyncio.create_task(_watch(host, workflow.name, screen)) if screen.is_live else None
    try:
        async for item in invocation.outputs():
            if item.index < 0:
                outcome.outputs[item.port] = text(item.value) if as_text else plain(item.value)
                continue
            times.setdefault(item.port, []).append(clock.monotonic())
            if as_text:
                screen.item(item)
                outcome.streamed.add(item.port)
            else:
                outcome.outputs.setdefault(item.port, []).append(plain(item.value))
    except InvocationFailed as error:
        outcome.failure = error.failure
    finally:
        invocation.cancel()
        if watcher is not None:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
    ended = clock.monotonic()
    outcome.trace = invocation.trace
    outcome.seconds = ended - begun
    if outcome.failure is None:
        outcome.verdicts = judge(workflow.slo, begun, ended, times)
    return outcome


async def _watch(host: HostApi, workflow: str, screen: Screen) -> None:
    """A live table is a picture taken now and then; nothing but the picture depends on this clock."""
    import asyncio

    while True:
        screen.stages(host.workflow(workflow).stages)
        await asyncio.sleep(0.1)


def _report(outcome: Outcome, output: Format, *, trace: bool) -> None:
    from rich.text import Text

    from dataflower.cli.outcome import results, slo_lines
    from dataflower.cli.terminal import describe
    from dataflower.cli.waterfall import FOLD, Waterfall
    from dataflower.errors import InvocationFailed

    if output is not Format.TABLE:
        emit(outcome.as_data(trace=trace), output, lambda: "")
    elif (table := results(outcome.outputs, outcome.streamed)) is not None:
        show(table)
    if not terminal().quiet:
        if outcome.trace is not None and output is Format.TABLE:
            show(Text(""), err=True)
            show(Waterfall(outcome.trace, len(outcome.trace.tasks) if trace else FOLD), err=True)
        if outcome.verdicts:
            show(slo_lines(outcome.verdicts), err=True)
    if outcome.failure is not None:
        terminal().error(describe(InvocationFailed(outcome.failure)))


def _print_logs(logs: Path, workflow: str) -> None:
    """What functions printed while the live table held the terminal, the last lines of each stage."""
    from dataflower.host.logs import logged_stages, tail

    for stage in logged_stages(logs, workflow):
        for line in tail(logs, workflow, stage, 20):
            terminal().note(f"{stage}| {line}")
