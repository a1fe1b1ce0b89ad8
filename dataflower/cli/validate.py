"""`dataflower validate`: everything wrong with a workflow file, as a compiler says it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.options import CodePath, Output, Profile
from dataflower.cli.terminal import Format, describe, emit, terminal
from dataflower.errors import NotFound, Problem, WorkflowInvalid

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Workflow files.", show_default=False)]


def validate(
    files: Files,
    profile: Profile = None,
    code_path: CodePath = None,
    output: Output = Format.TABLE,
) -> None:
    """Check workflow files like a compiler: FILE:LINE:COLUMN: message (hint). Imports no function.

    With -o json a list of {file, line, column, message, hint}, empty if all is well; line 0: the file can't be read.

    Example: dataflower validate workflows/*.yaml
    """
    problems: list[Problem] = []
    missing: list[Problem] = []
    sound: dict[str, str] = {}
    for file in files:
        try:
            found, role = _checked(file, profile, code_path or [])
        except NotFound as error:
            if output is Format.TABLE:
                terminal().error(describe(error))
            missing.append(Problem(str(file), 0, 0, error.message))
            continue
        problems += found
        if not found:
            sound[str(file)] = role
    if output is Format.TABLE:
        for problem in problems:
            print(problem)
        for name, role in sound.items():
            terminal().note(f"{name}: fine{role}")
    else:
        emit([_plain(problem) for problem in (*problems, *missing)], output, None)
    if problems or missing:
        raise typer.Exit(ExitCode.FAILED)


def _checked(file: Path, profile: str | None, code_path: list[str]) -> tuple[list[Problem], str]:
    """(problems, what the workflow would be served as)."""
    from dataflower.config.sources import load_file
    from dataflower.spec.serving import serving

    try:
        found = serving(load_file(file, profile=profile, code_path=code_path))
    except WorkflowInvalid as error:
        return list(error.problems), ""
    if found.role is not None:
        return [], f" (to OpenAI clients: {found.role.value})"
    return [], f" ({found.reason})" if found.reason else ""


def _plain(problem: Problem) -> dict[str, Any]:
    place = {"file": problem.file, "line": problem.line, "column": problem.column}
    return {**place, "message": problem.message, "hint": problem.hint}


command = validate
