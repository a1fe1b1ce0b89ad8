"""Whether what a caller gives fits what a workflow takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dataflower.errors import InvalidArgument
from dataflower.spec.function import Port
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.values import check_value


def split_inputs(
    workflow: str, ports: Mapping[str, Port], inputs: Mapping[str, Any], open_inputs: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The values, with defaults put in, and the items of stream inputs that were given whole.

    Raises InvalidArgument for names that are unknown, missing, or open without being streams, and for values that
    don't fit their port.
    """
    opened = frozenset(open_inputs)
    for name in (*inputs, *opened):
        if name not in ports:
            raise InvalidArgument(
                f"unknown input {name!r} of workflow {workflow!r} ({did_you_mean(name, ports, none='it takes none')})"
            )
    for name in opened:
        if not ports[name].stream:
            raise InvalidArgument(f"input {name!r} of workflow {workflow!r} is a value, not a stream")
        if name in inputs:
            raise InvalidArgument(f"input {name!r} is given whole and open at once")
    values: dict[str, Any] = {}
    streams: dict[str, list[Any]] = {}
    sizes: dict[str, int] = {}
    for name, port in ports.items():
        if name in opened:
            continue
        if name not in inputs:
            if not port.optional:
                raise InvalidArgument(f"input {name!r} of workflow {workflow!r} is missing; it takes {port.type}")
            if port.stream:
                streams[name] = []
            else:
                values[name] = port.default
        elif port.stream:
            streams[name] = _checked_items(port, inputs[name])
        else:
            check_value(port, inputs[name], sizes)
            values[name] = inputs[name]
    return values, streams


def _checked_items(port: Port, given: Any) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        raise InvalidArgument(f"input {port.name!r} is a stream: give a list of its items, not {type(given).__name__}")
    for item in given:
        check_value(port, item, {})
    return list(given)
