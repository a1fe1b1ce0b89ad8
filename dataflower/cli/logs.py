"""`dataflower logs`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from dataflower.cli.options import Server


def logs(
    workflow: Annotated[str, typer.Argument(help="Workflow.", show_default=False)],
    *,
    stage: Annotated[list[str] | None, typer.Option("--stage", "-s", help="This stage only (repeatable).")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each stage to begin with.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    state_dir: Annotated[
        Path | None,
        typer.Option("--state-dir", help="A state directory, instead of the server's.", show_default=False),
    ] = None,
    server: Server = None,
) -> None:
    """Show what the functions of a workflow printed, on the machine of the server.

    Example: dataflower logs wordcount --stage count -f
    """
    from dataflower.cli.terminal import terminal
    from dataflower.host.logs import logged_stages, stage_log, tail

    root = _root(server) if state_dir is None else state_dir.expanduser() / "logs"
    stages = tuple(stage or logged_stages(root, workflow))
    missing = [name for name in stages if not stage_log(root, workflow, name).exists()]
    if missing or not stages:
        _refuse(root, workflow, missing, logged_stages(root, workflow))
    width = max(map(len, stages)) if len(stages) > 1 else 0
    said = [_print(name, tail(root, workflow, name, lines), width) for name in stages]
    if not any(said) and lines:
        terminal().note(f"{workflow} has printed nothing")
    if follow:
        from dataflower.cli.follow import appended

        paths = {stage_log(root, workflow, name): name for name in stages}
        for path, line in appended(paths):
            _print(paths[path], [line], width)


def _root(server: str | None) -> Path:
    """Where the server writes, or the server that would run here if none answers."""
    from dataflower.cli.connect import connect
    from dataflower.config.compose import compose
    from dataflower.errors import FailedPrecondition, Unavailable

    with connect(server) as client:
        try:
            said = client.status().log_dir
        except Unavailable:
            said = ""
    if said and not os.access(Path(said).parent, os.R_OK | os.X_OK):
        raise FailedPrecondition(f"the server's logs are in {said} on its own machine, and can't be read here")
    return Path(said) if said else compose().config.state_dir / "logs"


def _print(stage: str, lines: Iterable[str], width: int) -> int:
    """How many lines there were."""
    count = 0
    for line in lines:
        print(f"{stage:{width}} | {line}" if width else line, flush=True)
        count += 1
    return count


def _refuse(root: Path, workflow: str, missing: list[str], there: tuple[str, ...]) -> None:
    from dataflower.errors import NotFound

    if there:
        raise NotFound(f"nothing logged by {', '.join(missing)} of {workflow!r} (there is {', '.join(there)})")
    if not root.parent.is_dir():
        raise NotFound(
            f"no folder {str(root.parent)!r} on this machine: logs lie on the server's (--state-dir names where)"
        )
    raise NotFound(f"nothing logged by workflow {workflow!r} (looked in {root})")
