"""What a function hands out, sorted into its ports and checked against their types."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from dataflower.container.failure import TypeMismatch
from dataflower.errors import Code, InvalidArgument
from dataflower.spec.function import Kind, Port, PortType
from dataflower.spec.values import check_value
from dataflower.wire import InputPort, OutputPort

_MISSING = object()


class Inputs:
    """The input ports whose types are worth a look at run time. None always passes: the input may be optional."""

    def __init__(self, ports: Iterable[InputPort]) -> None:
        self._typed = {port.name: _port(port) for port in ports if port.kind != Kind.ANY.value}

    def check(self, name: str, value: Any, sizes: dict[str, int]) -> None:
        """Check a value or an item, binding named sizes. Raises TypeMismatch with INVALID_ARGUMENT."""
        port = self._typed.get(name)
        if port is not None and value is not None:
            _check("input", port, value, sizes, Code.INVALID_ARGUMENT)

    def __bool__(self) -> bool:
        return bool(self._typed)


class Outputs:
    """The output ports of a function.

    With one port its value is the thing itself, with several it is a dict from port to value.
    """

    def __init__(self, ports: Iterable[OutputPort]) -> None:
        self._ports = {port.name: _port(port) for port in ports}
        self._only = next(iter(self._ports)) if len(self._ports) == 1 else None
        self._warned = False
        self._streams = frozenset(name for name, port in self._ports.items() if port.stream)
        self.streams = bool(self._streams)
        """Whether any port is a stream."""
        self._values = frozenset(self._ports) - self._streams
        self._typed = {name: port for name, port in self._ports.items() if port.type.kind is not Kind.ANY}

    def item(self, yielded: Any, sizes: dict[str, int]) -> dict[str, Any]:
        """The ports of one `yield`. Raises TypeMismatch."""
        if not self._streams:
            raise TypeMismatch(f"the function yields, but none of its outputs is a stream: {self._names()}")
        return self._sort(yielded, self._streams, "yield", sizes)

    def returned(self, value: Any, sizes: dict[str, int]) -> dict[str, Any]:
        """The value ports, from what a generator returned. Raises TypeMismatch."""
        if value is None and (self._streams or self._only is None):
            return {}
        if not self._values:
            raise TypeMismatch(
                f"the outputs {self._names()} are streams: the generator must return nothing, not {_describe(value)}"
            )
        return self._sort(value, self._values, "return", sizes)

    def values(self, value: Any, sizes: dict[str, int]) -> dict[str, Any]:
        """The ports, from what a plain function without streams returned. Raises TypeMismatch."""
        if self._only is not None:
            ports = {self._only: self._single(value)}
            return self._checked(ports, sizes) if self._typed else ports
        return self._sort({} if value is None else value, self._values, "return", sizes)

    def whole(self, value: Any, sizes: dict[str, int]) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
        """Items and value ports, from what a plain function with streams returned; items are checked when taken."""
        if self._only is not None:
            lists = {self._only: value}
            values: dict[str, Any] = {}
        else:
            ports = self._as_ports({} if value is None else value, frozenset(self._ports), "return")
            lists = {name: ports[name] for name in ports if name in self._streams}
            values = self._checked({name: ports[name] for name in ports if name in self._values}, sizes)
        return self._rows(lists, sizes), values

    def _rows(self, lists: Mapping[str, Any], sizes: dict[str, int]) -> Iterator[dict[str, Any]]:
        columns = [self._column(name, column) for name, column in lists.items()]
        for row in zip_longest(*columns, fillvalue=_MISSING):
            present = {name: item for name, item in zip(lists, row, strict=True) if item is not _MISSING}
            yield self._checked(present, sizes)

    def _column(self, name: str, value: Any) -> Iterator[Any]:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            raise TypeMismatch(
                f"output {name!r} is a stream: yield its items or return them as a list, not {_describe(value)}"
            )
        return iter(value)

    def _single(self, value: Any) -> Any:
        """The value of the only port; a dict that looks like ports by name is handed on, with a word in the log."""
        if not self._warned and type(value) is dict and len(value) == 1 and self._only in value:
            self._warned = True
            print(
                f"dataflower: a dict with the one key {self._only!r} goes out as it is: a function with one output "
                "returns the value itself",
                file=sys.stderr,
                flush=True,
            )
        return value

    def _sort(self, value: Any, allowed: frozenset[str], verb: str, sizes: dict[str, int]) -> dict[str, Any]:
        if self._only is not None:
            return self._checked({self._only: self._single(value)}, sizes)
        return self._checked(self._as_ports(value, allowed, verb), sizes)

    def _as_ports(self, value: Any, allowed: frozenset[str], verb: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeMismatch(
                f"the function has several outputs ({self._names()}): {verb} a dict from output to value, "
                f"not {_describe(value)}"
            )
        for name in value:
            if name not in allowed:
                known = ", ".join(sorted(allowed)) or "none"
                raise TypeMismatch(f"{verb} names the output {name!r}; a {verb} can fill: {known}")
        return dict(value)  # ours, so that nobody but us can reach what is in there through it

    def _checked(self, ports: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
        if self._typed:
            for name, value in ports.items():
                port = self._typed.get(name)
                if port is not None:
                    _check("output", port, value, sizes, Code.INTERNAL)
        return ports

    def _names(self) -> str:
        return ", ".join(self._ports) or "none"


def _check(side: str, port: Port, value: Any, sizes: dict[str, int], code: Code) -> None:
    try:
        check_value(port, value, sizes)
    except InvalidArgument as error:
        raise TypeMismatch(f"{side}: {error.message}", code=code) from None


def _port(port: InputPort | OutputPort) -> Port:
    return Port(port.name, PortType(Kind(port.kind), port.dtype, port.shape), port.stream)


def _describe(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
