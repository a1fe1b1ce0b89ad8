"""`dataflower profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dataflower.cli.options import CodePath, ConfigFile, Inputs, Output, Profile
from dataflower.cli.terminal import Format, emit, terminal

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress
    from rich.table import Table

    from dataflower.host.settings import HostConfig
    from dataflower.loadgen.profiling.profiler import Profiled, Request
    from dataflower.planner.measured import ProfileDocument, TokenPoint, TokensProfile


def profile(
    file: Annotated[Path, typer.Argument(help="Workflow file.", show_default=False)],
    inputs: Inputs = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the profile goes.", show_default="profiles/WORKFLOW.yaml"),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE", help="Inputs of the real runs: a JSON object on each line."),
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Real runs with each set of inputs.")] = 2,
    batches: Annotated[
        str, typer.Option("--batches", metavar="N,N,...", help="Batch sizes, for stages that take batches.")
    ] = "1,2,4,8,16",
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Most time for one batch size of one stage.")
    ] = 3.0,
    device: Annotated[str, typer.Option("--device", help="What the price file calls this kind of machine.")] = "cpu",
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Take what was measured before.")] = True,
    profile: Profile = None,
    code_path: CodePath = None,
    config: ConfigFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Measure on this machine what `plan` needs to know of a workflow.

    A few real runs tell how often each stage runs and what it is given. Then each stage has the machine to itself and
    runs on those inputs in a real container, batch size after batch size, until the median of its duration is known to
    within 5 % or its time is up. What depends on nothing that has changed (code, params, files that the function reads,
    this machine) is not measured again. Of a stage with a language model prompts and steps of its answers are measured
    apart, on prompts of rising length and rising numbers of answers at a time.

    Example: dataflower profile workflows/face.yaml
    """
    import tempfile

    from dataflower.cli.inputs import parse_inputs
    from dataflower.cli.local import run_loop
    from dataflower.cli.settings import composed
    from dataflower.cli.workflows import beside, load_file
    from dataflower.config.convert import host_config, resolved_code_path
    from dataflower.host.inputs import split_inputs
    from dataflower.loadgen.profiling.cache import Cache, default_folder
    from dataflower.loadgen.profiling.measure import Effort
    from dataflower.loadgen.profiling.profiler import Request

    settings = beside(composed({"code_path": code_path}, config).config, [file])
    workflow, _ = load_file(file, settings, profile)
    given = [parse_inputs(inputs or [], workflow.inputs)] if runs is None else _given(runs, inputs)
    for one in given:
        split_inputs(workflow.name, {port.name: port for port in workflow.inputs}, one)  # before anything is started
    target = out or Path("profiles") / f"{workflow.name}.yaml"
    with tempfile.TemporaryDirectory(prefix="dataflower-profile-") as folder:
        request = Request(
            workflow,
            [one for one in given for _ in range(repeat)],
            device,
            [Path(place) for place in resolved_code_path(settings)],
            Path(folder) / "notes",
            Effort(_sizes(batches), seconds),
            Cache(default_folder() if cache else None),
        )
        host = host_config(
            settings,
            state_dir=None,
            log_dir=Path(folder) / "logs",
            max_containers=256,
            writable_paths=(*settings.writable_paths, folder),  # where containers leave their notes
        )
        found = run_loop(_measure(host, request))
    _write(target, found.document)
    emit(found.document.as_data(), output, lambda: profile_table(found))
    _say(found)
    terminal().note(f"written: {target}")


def _say(found: Profiled) -> None:
    """What a person should know of the figures."""
    unknown = [name for name, stage in found.document.stages.items() if not stage.points]
    for name in unknown:
        terminal().note(f"stage {name} did not run: give inputs that lead to it, or `plan` can't reckon with it")
    if any(not p.steady for name in found.cached for p in found.document.stages[name].points):
        terminal().note("some of what was kept was not steady when it was measured: --no-cache measures again")


async def _measure(config: HostConfig, request: Request) -> Profiled:
    from dataflower.cli.local import open_host
    from dataflower.host.runtime import Runtime
    from dataflower.loadgen.profiling.profiler import profile as measure

    with _Bar() as bar:
        async with open_host(config) as host:
            assert isinstance(host, Runtime)
            return await measure(host, request, bar)


def _sizes(text: str) -> tuple[int, ...]:
    from itertools import pairwise

    from dataflower.cli.exits import WrongUsage

    try:
        sizes = sorted({1, *(int(part) for part in text.split(","))})
    except ValueError:
        raise WrongUsage(f"--batches: {text!r} is not a list of whole numbers such as 1,2,4") from None
    if sizes[0] < 1:
        raise WrongUsage(f"--batches: {sizes[0]} is no batch size")
    for small, large in pairwise(sizes):
        if large > 4 * small:
            raise WrongUsage(f"--batches: nothing between {small} and {large}; give sizes at most a factor of 4 apart")
    return tuple(sizes)


def _given(file: Path, inputs: list[str] | None) -> list[dict[str, Any]]:
    """One set of inputs for each line."""
    import json

    from dataflower.cli.exits import WrongUsage
    from dataflower.config.text import read_text
    from dataflower.errors import InvalidArgument

    if inputs:
        raise WrongUsage("give inputs on the command line or in --inputs FILE, not both")
    found = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
        except ValueError as error:
            raise InvalidArgument(f"{file}:{number}:1: not valid JSON: {error}") from None
        if not isinstance(one, dict):
            raise InvalidArgument(f"{file}:{number}:1: not an object with the inputs by name")
        found.append(one)
    if not found:
        raise InvalidArgument(f"{file}:1:1: no inputs in it")
    return found


def _write(target: Path, document: ProfileDocument) -> None:
    """Complete or not at all."""
    from dataflower.cli.files import write_yaml

    head = "Written by `dataflower profile`. Durations in ms; read by `dataflower plan`."
    write_yaml(target, document.as_data(), head)


def profile_table(found: Profiled) -> Table:
    """A row for each stage and batch size."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "batch", "ms", "p90", "busy", "spread", "per s", "runs", "memory", "tasks", "note"):
        table.add_column(name, justify="left" if name in ("stage", "note") else "right")
    for name, stage in found.document.stages.items():
        notes = ["from cache"] * (name in found.cached) + ["within real runs"] * (stage.how == "in place")
        if not stage.points:
            table.add_row(name, *["-"] * 8, f"{stage.tasks:g}", "did not run")
        for i, p in enumerate(stage.points):
            note = [*notes] if i == 0 else []
            table.add_row(
                name if i == 0 else "",
                str(p.batch),
                f"{p.duration_ms:.4g}",
                f"{p.high_ms:.4g}" if p.high_ms else "-",
                f"{p.busy_ms:.4g}" if p.busy_ms else "-",
                f"{p.std_ms / p.duration_ms:.0%}",
                f"{p.batch / p.duration_ms * 1000:.4g}",
                str(p.runs),
                f"{p.memory_bytes / 2**20:.0f} MiB" if p.memory_bytes else "-",
                f"{stage.tasks:g}" if i == 0 else "",
                ", ".join([*note, *([] if p.steady else ["not steady"])]),
            )
        if stage.tokens is not None:
            _token_rows(table, stage.tokens)
    return table


def _token_rows(table: Table, tokens: TokensProfile) -> None:
    """What prompts and steps of a language model take, below the stage that has it."""
    rows: list[tuple[str, int, TokenPoint]] = [(f"  prompt of {p.tokens}", p.tokens, p) for p in tokens.prefill]
    steps: list[tuple[str, int, TokenPoint]] = [(f"  step at {p.context} tokens", p.batch, p) for p in tokens.decode]
    for i, (name, count, p) in enumerate([*rows, *steps]):
        table.add_row(
            name,
            "1" if i < len(rows) else str(count),
            f"{p.duration_ms:.4g}",
            f"{p.high_ms:.4g}" if p.high_ms else "-",
            f"{p.busy_ms:.4g}" if p.busy_ms else "-",
            "",
            f"{count / p.duration_ms * 1000:.4g}",
            str(p.runs),
            "",
            "",
            "tokens per s" + ("" if p.steady else ", not steady"),
        )


class _Bar:
    """Progress on stderr; silent where that is no terminal, or with --quiet."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = terminal().err()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._live: Progress = Progress(
            *columns, console=console, transient=True, disable=terminal().quiet or not console.is_terminal
        )
        self._task = self._live.add_task("starting", total=None)

    def __enter__(self) -> _Bar:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, steps: int) -> None:
        """See `profiler.Progress`."""
        self._live.update(self._task, total=steps)

    def step(self, what: str) -> None:
        """See `profiler.Progress`."""
        self._live.update(self._task, description=what)

    def done(self, steps: int = 1) -> None:
        """See `profiler.Progress`."""
        self._live.advance(self._task, steps)
