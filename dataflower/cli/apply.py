"""`dataflower apply`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dataflower.cli.options import CodePath, Output, Profile, Server
from dataflower.cli.terminal import Format, emit, terminal
from dataflower.core.plan import Replan
from dataflower.errors import DataflowerError

if TYPE_CHECKING:
    from dataflower.gateway.client import Client
    from dataflower.gateway.messages import WorkflowInfo


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
    replan: Annotated[
        Replan | None,
        typer.Option(
            "--replan",
            help="Whether the plan is made anew when the traffic is not what it was made for; dry-run only says so.",
            show_default=False,
        ),
    ] = None,
    code_path: CodePath = None,
    server: Server = None,
    output: Output = Format.TABLE,
) -> None:
    """Put workflows on a server; the newest version of a name serves.

    The server checks the file. One that includes other files, or is overlaid by a profile, is put together here.

    Without --plan and --no-plan a workflow that has not changed keeps its plan, and a new version has none. --replan
    without --plan is about the plan that it has.

    Example: dataflower apply workflows/face.yaml --plan face.plan.yaml --replan on
    """
    from dataflower.cli.connect import connect
    from dataflower.cli.exits import WrongUsage
    from dataflower.cli.records import workflow_data, workflow_table
    from dataflower.cli.workflows import beside, includes_others, load_file, read_file
    from dataflower.config.compose import compose

    if plan is not None and (no_plan or len(files) > 1):
        raise WrongUsage("--plan is for one workflow" if not no_plan else "--plan and --no-plan contradict each other")
    if replan is not None and no_plan:
        raise WrongUsage("--replan and --no-plan contradict each other")
    by = "" if no_plan else None if plan is None else _plan_text(plan, replan)
    plan_name = None if plan is None else str(plan)
    config = compose({"code_path": code_path}).config
    with connect(server) as client:
        infos = []
        for file in files:
            try:
                source: Path | str = file if str(file) != "-" else read_file(file)
                text = read_file(file) if source is file else str(source)
                if profile is not None or includes_others(text, str(file)):
                    _, source = load_file(file, beside(config, [file]), profile)
                info = client.apply(source, expected_version=expected_version, plan=by, plan_name=plan_name)
                if replan is not None and plan is None:
                    info = _change(client, source, info, replan)
                infos.append(info)
            except DataflowerError:
                if len(files) > 1:
                    done = ", ".join(f"{info.name}@{info.version}" for info in infos) or "nothing"
                    terminal().error(f"{file} was refused; applied before it: {done}")
                raise
    if output is not Format.TABLE or not terminal().quiet:
        emit([workflow_data(info) for info in infos], output, lambda: workflow_table(infos))


def _plan_text(plan: Path, replan: Replan | None) -> str:
    """A plan file, looked at here so that what is wrong with it is said of the file."""
    from dataflower.cli.replan import with_replan
    from dataflower.cli.workflows import read_file
    from dataflower.planner.document import parse_plan

    text = read_file(plan)
    if replan is not None:
        return with_replan(text, str(plan), replan)
    parse_plan(text, str(plan))
    return text


def _change(client: Client, source: Path | str, info: WorkflowInfo, mode: Replan) -> WorkflowInfo:
    """Say it of the plan that the server has."""
    from dataflower.cli.replan import with_replan
    from dataflower.errors import FailedPrecondition

    present = client.workflow(info.name).plan
    if not present:
        raise FailedPrecondition(f"{info.name}@{info.version} is run without a plan: give it one with --plan")
    return client.apply(source, expected_version=info.version, plan=with_replan(present, "the present plan", mode))
