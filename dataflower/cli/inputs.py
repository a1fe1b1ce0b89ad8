"""`name=value` on the command line -> the inputs of a workflow."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflower.cli.exits import WrongUsage
from dataflower.errors import InvalidArgument, ResourceExhausted
from dataflower.spec.function import DTYPES, Kind, Port, PortType

TEXT_BYTES = 10
"""Of a number as text, for each of its bytes in an array, at the most: JSON may be so much longer than what is sent."""


def named_files(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Inputs that name existing files: functions in a sandbox are to see what they were told to read."""
    texts = (
        value for value in inputs.values() if isinstance(value, str) and 0 < len(value) < 4096 and "\0" not in value
    )
    return tuple(os.path.abspath(text) for text in texts if os.path.isfile(text))


def parse_inputs(
    pairs: Iterable[str], ports: Iterable[Port] | None = None, *, max_bytes: int | None = None
) -> dict[str, Any]:
    """Read `name=value` pairs.

    A value is JSON or, failing that, the string itself; `@file` reads a file (`@-` stdin, `@@` a literal @). Where
    `ports` are known, their types decide: a string port takes `5` as "5". Values of stream ports are lists. No more of
    a file is read than a message of `max_bytes` could carry.

    Raises:
        WrongUsage: not a pair, an unknown name, or a name given twice.
        InvalidArgument: a value does not fit its port.
        ResourceExhausted: a file is larger than a message.
    """
    known = None if ports is None else {port.name: port for port in ports}
    inputs: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise WrongUsage(f"input {shortened(pair)} is not of the form name=value")
        if name in inputs:
            raise WrongUsage(f"input {name!r} is given twice")
        if known is not None and name not in known:
            raise WrongUsage(f"no input {name!r} ({_which(known)})")
        port = known[name] if known is not None else Port(name)
        inputs[name] = _stream(text, port, max_bytes) if port.stream else _value(text, port.type, name, max_bytes)
    return inputs


def typed_inputs(given: Mapping[str, Any], ports: Iterable[Port]) -> dict[str, Any]:
    """Inputs that are JSON values already, as the types of the ports want them; `"@file"` reads a file.

    Raises:
        InvalidArgument: an unknown name, or a value that does not fit its port.
    """
    known = {port.name: port for port in ports}
    inputs: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidArgument(f"no input {name!r} ({_which(known)})")
        port = known[name]
        if isinstance(value, str) and value.startswith("@"):
            inputs[name] = _stream(value, port) if port.stream else _value(value, port.type, name)
        elif port.stream:
            if not isinstance(value, list):
                raise InvalidArgument(f"input {name!r} is a stream: give a list of its items")
            inputs[name] = [_shaped(item, port.type, name) for item in value]
        elif port.type.kind is Kind.BYTES and isinstance(value, str):
            inputs[name] = value.encode()
        else:
            inputs[name] = _shaped(value, port.type, name)
    return inputs


def shortened(value: Any) -> str:
    """A value as a message may show it: files hold more than a person reads."""
    text = f"{value:.100}" if isinstance(value, str) else value
    return f"{text!r}" + (f"... ({len(value)} characters)" if text != value else "")


def _which(known: dict[str, Port]) -> str:
    return "the workflow takes " + ", ".join(known) if known else "the workflow takes no inputs"


def _stream(text: str, port: Port, max_bytes: int | None = None) -> list[Any]:
    items = _value(text, PortType(Kind.JSON), port.name, max_bytes)
    if isinstance(items, str):
        items = items.splitlines()
    if not isinstance(items, list):
        raise InvalidArgument(f"input {port.name!r} is a stream: give a JSON list, or a file with an item on each line")
    return [_shaped(item, port.type, port.name) for item in items]


def _value(text: str, type_: PortType, name: str, max_bytes: int | None = None) -> Any:
    if text.startswith("@@"):
        return _shaped(text[1:], type_, name)
    if text.startswith("@"):
        return _file(text[1:], type_, name, max_bytes)
    if type_.kind is Kind.STRING:
        return text
    if type_.kind is Kind.BYTES:
        return text.encode()
    return _shaped(_parsed(text, type_, name), type_, name)


def _parsed(text: str, type_: PortType, name: str) -> Any:
    """JSON, or the text itself where a port could take text."""
    try:
        return json.loads(text)
    except ValueError as error:
        if type_.kind is Kind.TENSOR:
            raise InvalidArgument(f"input {name!r}: not valid JSON: {error} (a list, or @file.npy)") from None
        return text


def _file(path: str, type_: PortType, name: str, max_bytes: int | None) -> Any:
    is_sent_so = type_.kind in (Kind.BYTES, Kind.STRING) or path.endswith(".npy")
    limit = None if max_bytes is None else max_bytes * (1 if is_sent_so else TEXT_BYTES)
    try:
        data = _read(path, -1 if limit is None else limit + 1)
    except OSError as error:
        raise InvalidArgument(f"input {name!r}: can't read {path}: {error.strerror}") from error
    if limit is not None and len(data) > limit:
        message = f"input {name!r}: {path} is larger than the server's max_message_bytes, {max_bytes}, allows"
        raise ResourceExhausted(f"{message}; raise that, or have functions read the file")
    if type_.kind is Kind.BYTES:
        return data
    if path.endswith(".npy"):
        import numpy as np

        return np.load(io.BytesIO(data), allow_pickle=False)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        if type_.kind is Kind.ANY:
            return data
        raise InvalidArgument(f"input {name!r}: {path} is not text, and the port takes {type_}") from None
    if type_.kind is Kind.STRING:
        return text
    return _shaped(_parsed(text, type_, name), type_, name)


def _read(path: str, nbytes: int) -> bytes:
    """Up to so many, -1 for all: a device or a pipe may never end, and says no size beforehand."""
    if path == "-":
        return sys.stdin.buffer.read(nbytes)
    with Path(path).expanduser().open("rb") as file:
        return file.read(nbytes)


def _tensor(value: Any, type_: PortType, name: str) -> Any:
    """The array that JSON describes, in the port's dtype; a number that the dtype can't hold exactly is refused.

    Floats may be rounded to the port's precision, as everywhere.
    """
    import numpy as np

    try:
        given = np.asarray(value)
        with np.errstate(all="ignore"):
            array = given.astype(DTYPES[type_.dtype]) if type_.dtype in DTYPES else given
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"input {name!r}: not a {type_}: {error}") from error
    if given.dtype.kind in "OUS":
        raise InvalidArgument(f"input {name!r}: not a {type_}: {value!r:.80}")
    rounded = given.dtype.kind == "f" and array.dtype.kind == "f"
    if not rounded and not np.array_equal(given, array):
        raise InvalidArgument(f"input {name!r}: {type_} can't hold these numbers exactly")
    return array


def _shaped(value: Any, type_: PortType, name: str) -> Any:
    if type_.kind is Kind.TENSOR:
        return _tensor(value, type_, name)
    fits = {
        Kind.INT: isinstance(value, int) and not isinstance(value, bool),
        Kind.FLOAT: isinstance(value, int | float) and not isinstance(value, bool),
        Kind.BOOL: isinstance(value, bool),
        Kind.STRING: isinstance(value, str),
    }
    if not fits.get(type_.kind, True):
        raise InvalidArgument(f"input {name!r} takes {type_}, not {shortened(value)}")
    return value
