"""The tree of verbs, imported one by one as they are asked for."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dataflower.cli.exits import ExitCode, WrongUsage
from dataflower.cli.terminal import adjust, describe, reset, terminal
from dataflower.errors import DataflowerError
from dataflower.spec.suggest import did_you_mean

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Write": {
        "init": "Write a starter workflow",
        "validate": "Check workflow files like a compiler",
        "graph": "Draw a workflow",
        "fmt": "Tidy workflow files",
        "schema": "Print the JSON Schema of workflow files",
    },
    "Run here": {
        "run": "Run a workflow once, in this process",
        "serve": "Start a server",
        "profile": "Measure how long the stages of a workflow take here",
        "plan": "Find the cheapest way to keep an SLO",
    },
    "Talk to a server": {
        "apply": "Put workflows on a server",
        "ls": "List workflows and invocations",
        "status": "Show a workflow or an invocation",
        "invoke": "Call a workflow",
        "bench": "Load a workflow, and say whether its SLO holds",
        "logs": "Show what functions printed",
        "trace": "Draw the timeline of an invocation",
        "cancel": "Stop an invocation",
        "rm": "Remove workflows",
    },
    "Look around": {
        "models": "Fetch, list, check and remove weights",
        "doctor": "Check what this machine lacks",
        "config": "Print the effective configuration",
        "version": "Print the version",
    },
}
"""Verb -> one line, by section: the help page, without importing a single verb."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a stream without a name says when it can't take more: stdout, sent to a file on a full disk."""

VERBS = {verb: line for section in SECTIONS.values() for verb, line in section.items()}


def _common(
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print results only.", callback=lambda v: v and adjust(quiet=True)),
    ] = False,
    no_color: Annotated[
        bool,
        typer.Option(
            "--no-color", help="No colours (NO_COLOR does the same).", callback=lambda v: v and adjust(color=False)
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks of errors.", callback=lambda v: v and adjust(debug=True)),
    ] = False,
) -> None:
    """Options that every verb takes."""


def _common_options() -> list[Any]:
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command()(_common)
    options = [p for p in get_command(single).params if p.name in ("quiet", "no_color", "debug")]
    for option in options:
        option.expose_value = False
    return options


def _command(name: str, verb: Any) -> Any:
    """A verb, or a verb with verbs of its own (a `Typer`); each takes the common options."""
    if isinstance(verb, typer.Typer):
        command: Any = get_command(verb)
        command.name, command.short_help = name, VERBS[name]
        parts = [command, *command.commands.values()]
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name=name, short_help=VERBS[name])(verb)
        command = get_command(single)
        parts = [command]
    for part in parts:
        taken = {option for param in part.params for option in param.opts}
        part.params += [p for p in _common_options() if not taken.intersection(p.opts)]
    return command


def _give_up_stdout() -> None:
    """What it still holds would be tried once more, in vain and with a traceback, when the process ends."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor where a test has put something in its place
        descriptor = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


class VerbGroup(TyperGroup):
    """Finds a verb by importing `dataflower.cli.VERB`; turns errors of ours into lines on stderr and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: D102
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: D102
        if cmd_name not in VERBS:
            return None
        if cmd_name not in self.commands:
            module = importlib.import_module(f"dataflower.cli.{cmd_name}")
            self.commands[cmd_name] = _command(cmd_name, getattr(module, cmd_name))
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: D102
        if args and args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"no command {args[0]!r} ({did_you_mean(args[0], VERBS, 'dataflower --help lists them')})")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: D102
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))

    def invoke(self, ctx: Any) -> Any:  # noqa: D102
        reset()
        try:
            return super().invoke(ctx)
        except DataflowerError as error:
            if terminal().debug:
                raise
            print(describe(error), file=sys.stderr)
            raise typer.Exit(ExitCode.USAGE if isinstance(error, WrongUsage) else ExitCode.FAILED) from error
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # the words of the library that checks values
            raise
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except OSError as error:
            full = error.filename is None and error.errno in _FULL
            if terminal().debug or isinstance(error, BrokenPipeError) or (error.filename is None and not full):
                raise
            what = "write the output" if full else f"use {str(error.filename)!r}"
            print(f"error: can't {what}: {error.strerror}", file=sys.stderr)
            if full:
                _give_up_stdout()
            raise typer.Exit(ExitCode.FAILED) from error


app = typer.Typer(
    cls=VerbGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def dataflower() -> None:
    """Run workflows of functions, DNNs and LLMs with dataflow execution.

    Every verb has its own help with an example: dataflower VERB --help
    """
