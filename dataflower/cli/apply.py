"""`dataflower apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dataflower.cli.options import CodePath, Output, Profile, Server
from dataflower.cli.terminal import Format, emit, terminal
from dataflower.errors import DataflowerError


def apply(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Workflow files.", show_default=False)],
    *,
    profile: Profile = None,
    expected_version: Annotated[
        int | None,
        typer.Option("--expected-version", min=0, help="Refuse if the server has another version (0: none yet)."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="Run it by this plan (`dataflower plan -o yaml`).", show_default=False),
    ] = None,
    no_plan: Annotated[bool, typer.Option("--no-plan", help="Run it as its file says, without a plan.")] = False,
    code_path: CodePath = None,
    server: Server = None,
    output: Output = Format.TABLE,
) -> None:
    """Put workflows on a server; the newest version of a name serves.

    The server checks the file. One that includes other files, or is overlaid by a profile, is put together here.

    Without --plan and --no-plan a workflow that has not changed keeps its plan, and a new version has none.

    Example: dataflower apply workflows/wordcount.yaml
    """
    from dataflower.cli.connect import connect
    from dataflower.cli.exits import WrongUsage
    from dataflower.cli.records import workflow_data, workflow_table
    from dataflower.cli.workflows import beside, includes_others, load_file, read_file
    from dataflower.config.compose import compose

    if plan is not None and (no_plan or len(files) > 1):
        raise WrongUsage("--plan is for one workflow" if not no_plan else "--plan and --no-plan contradict each other")
    by: Path | str | None = "" if no_plan else plan
    if plan is not None:
        _check_plan(plan)
    config = compose({"code_path": code_path}).config
    with connect(server) as client:
        infos = []
        for file in files:
            try:
                source: Path | str = file if str(file) != "-" else read_file(file)
                text = read_file(file) if source is file else str(source)
                if profile is not None or includes_others(text, str(file)):
                    _, source = load_file(file, beside(config, [file]), profile)
                infos.append(client.apply(source, expected_version=expected_version, plan=by))
            except DataflowerError:
                if len(files) > 1:
                    done = ", ".join(f"{info.name}@{info.version}" for info in infos) or "nothing"
                    terminal().error(f"{file} was refused; applied before it: {done}")
                raise
    if output is not Format.TABLE or not terminal().quiet:
        emit([workflow_data(info) for info in infos], output, lambda: workflow_table(infos))


def _check_plan(plan: Path) -> None:
    """Look at a plan file here, so that what is wrong with it is said of the file; whether it fits, the server says."""
    from dataflower.cli.workflows import read_file
    from dataflower.planner.document import parse_plan

    parse_plan(read_file(plan), str(plan))
