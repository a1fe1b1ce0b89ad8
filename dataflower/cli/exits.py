"""Exit codes of the command line."""

from __future__ import annotations

import enum

from dataflower.errors import InvalidArgument


class ExitCode(enum.IntEnum):
    """What the shell gets to see."""

    FINE = 0
    FAILED = 1
    USAGE = 2
    SLO_NOT_MET = 3
    INFEASIBLE = 4
    INTERRUPTED = 130


class WrongUsage(InvalidArgument):
    """The command line itself is wrong, whatever the workflow and the server are like."""
