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
    code_path: CodePath = None,
    server: Server = None,
    output: Output = Format.TABLE,
) -> None:
    """Put workflows on a server; the newest version of a name serves.

    The server checks the file. One that includes other files, or is overlaid by a profile, is put together here.

    Example: dataflower apply workflows/wordcount.yaml
    """
    from dataflower.cli.connect import connect
    from dataflower.cli.records import workflow_data, workflow_table
    from dataflower.cli.workflows import beside, includes_others, load_file, read_file
    from dataflower.config.compose import compose

    config = compose({"code_path": code_path}).config
    with connect(server) as client:
        infos = []
        for file in files:
            try:
                source: Path | str = file if str(file) != "-" else read_file(file)
                text = read_file(file) if source is file else str(source)
                if profile is not None or includes_others(text, str(file)):
                    _, source = load_file(file, beside(config, [file]), profile)
                infos.append(client.apply(source, expected_version=expected_version))
            except DataflowerError:
                if len(files) > 1:
                    done = ", ".join(f"{info.name}@{info.version}" for info in infos) or "nothing"
                    terminal().error(f"{file} was refused; applied before it: {done}")
                raise
    if output is not Format.TABLE or not terminal().quiet:
        emit([workflow_data(info) for info in infos], output, lambda: workflow_table(infos))
