"""Whether what one port gives is what another takes."""

from __future__ import annotations

from dataflower.spec.function import Kind, PortType

_PLAIN = frozenset({Kind.JSON, Kind.STRING, Kind.INT, Kind.FLOAT, Kind.BOOL})


def mismatch(given: PortType, wanted: PortType) -> str:
    """Why `given` can never be a `wanted`, or an empty string.

    What only a value can tell (a JSON value that should be a string) is left to the check at run time.
    """
    if Kind.ANY in (given.kind, wanted.kind):
        return ""
    if given.kind is not wanted.kind:
        plain = given.kind in _PLAIN and wanted.kind in _PLAIN and Kind.JSON in (given.kind, wanted.kind)
        widened = (given.kind, wanted.kind) == (Kind.INT, Kind.FLOAT)
        return "" if plain or widened else f"{given.kind.value} is not {wanted.kind.value}"
    if given.dtype and wanted.dtype and given.dtype != wanted.dtype:
        return f"dtype {given.dtype} is not {wanted.dtype}"
    if given.shape is None or wanted.shape is None:
        return ""
    if len(given.shape) != len(wanted.shape):
        return f"rank {len(given.shape)} is not {len(wanted.shape)}"
    for index, (own, other) in enumerate(zip(given.shape, wanted.shape, strict=True)):
        if isinstance(own, int) and isinstance(other, int) and own != other:
            return f"size {own} of dimension {index} is not {other}"
    return ""


def listed(item: PortType) -> PortType:
    """Type of a list of such items: JSON if they are, else anything."""
    return PortType(Kind.JSON) if item.kind in _PLAIN else PortType()
