"""The command line: `dataflower VERB`, one module per verb.

A verb's module holds a function of the verb's name, in typer's style, whose docstring is its help. Nothing heavy is
imported before the verb that needs it has been chosen, so that help, completion and `version` answer at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `dataflower` script; ends the process with the exit codes of `cli.exits`."""
    if sys.argv[1:] in (["version"], ["--version"]):
        from dataflower.cli.compiled import title

        print(title())
        return
    try:
        from dataflower.cli.group import app

        app(prog_name="dataflower")
    except KeyboardInterrupt:  # while verbs are being imported; later `group` says so
        from dataflower.cli.exits import ExitCode

        print("interrupted", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
