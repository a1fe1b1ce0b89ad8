"""Exit codes of the command line."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What the shell gets to see."""

    FINE = 0
    FAILED = 1
    USAGE = 2
    SLO_NOT_MET = 3
    INFEASIBLE = 4
