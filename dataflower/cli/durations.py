"""Durations on the command line: a number of seconds, or a string such as `200ms`."""

from __future__ import annotations

import re

from dataflower.cli.exits import WrongUsage
from dataflower.spec.units import parse_duration


def duration(option: str, text: str) -> float:
    """Seconds.

    Raises:
        WrongUsage: it is no duration.
    """
    try:
        return parse_duration(float(text) if re.fullmatch(r"\d*\.?\d+", text) else text)
    except ValueError as error:
        raise WrongUsage(f"{option}: {error}") from error


def limit(option: str, text: str | None) -> float | None:
    """Seconds, more than none; None if the option was not given.

    Raises:
        WrongUsage: it is no duration, or nothing could be done within it.
    """
    if text is None:
        return None
    found = duration(option, text)
    if found <= 0:
        raise WrongUsage(f"{option} must be longer than 0, not {text}")
    return found
