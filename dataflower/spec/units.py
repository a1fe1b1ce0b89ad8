"""Durations and sizes as people write them: `200ms`, `4GiB`. A bare number is in the unit that the key names."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
    "KB": 1000,
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
DURATION_PATTERN = r"^\s*\d+(\.\d+)?\s*(us|ms|s|m|min|h|d)\s*$"
SIZE_PATTERN = r"^\s*\d+(\.\d+)?\s*([kKMGT]?B|[KMGT]iB?)\s*$"


def parse_duration(value: object, unit: str = "s") -> float:
    """Seconds, or milliseconds if `unit` is `ms`.

    Raises:
        ValueError: not a number and not a number with a unit of time, or one that no float can hold.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _float(value)
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2] not in _SECONDS:
        raise ValueError(
            f"{value!r} is not a duration: write a number ({unit}) or a string such as '200ms', '1.5s', '2m'"
        )
    if found[2] == unit:
        return _float(found[1])
    return _float(found[1], _SECONDS[found[2]]) / _SECONDS[unit]


def parse_size(value: object) -> int:
    """Bytes.

    Raises:
        ValueError: not a whole number and not a number with a unit of size, or one that no float can hold.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2] not in _BYTES:
        raise ValueError(
            f"{value!r} is not a size: write a number of bytes or a string such as '512MiB', '4GiB', '2GB'"
        )
    return int(_float(found[1], _BYTES[found[2]]))


def _float(number: str | float, unit: float = 1) -> float:
    """So many of a unit. What no float can hold is a ValueError, neither an OverflowError nor infinite."""
    try:
        product = float(number) * unit
    except OverflowError:
        product = math.inf
    if math.isinf(product) and number != product:  # infinity itself is for others to refuse
        raise ValueError("the number is too large")
    return product


def show_size(size: int) -> int | str:
    """The shortest spelling that `parse_size` reads back exactly."""
    for prefix in "TGMK":
        unit = _BYTES[f"{prefix}iB"]
        if size and size % unit == 0:
            return f"{size // unit}{prefix}iB"
    return size
