"""Results as text and as JSON."""

from __future__ import annotations

import base64
import enum
import json
import math
from typing import Any

SHOWN = 1024
"""Elements of a tensor, or bytes, up to which the data itself is printed."""
SHOWN_CHARS = 100_000
"""Characters of a text up to which all of it is printed: a table takes minutes to lay out millions."""
_LINE = 100
_ITEMS = 8


def plain(value: Any) -> Any:
    """A value with nothing in it that JSON lacks: tensors become {dtype, shape, data}, bytes {nbytes, base64}, NaN
    null, infinities strings, and members of enums their values.

    Data beyond `SHOWN` elements is left out, so that a picture does not flood the terminal.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        encoded = {"base64": base64.b64encode(data).decode()} if len(data) <= SHOWN else {}
        return {"nbytes": len(data), **encoded}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if hasattr(value, "__array__"):
        return _tensor(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _tensor(value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    if array.ndim == 0:
        return plain(array.item())
    shown = {"data": plain(array.tolist())} if array.size <= SHOWN else {}
    return {"dtype": str(array.dtype), "shape": list(array.shape), **shown}


def text(value: Any) -> str:
    """A value for people: strings as they are up to `SHOWN_CHARS`, tensors by type and shape (small ones with data)."""
    if isinstance(value, str):
        if len(value) <= SHOWN_CHARS:
            return value
        return f"{value[:SHOWN_CHARS]} ... ({len(value):,} characters; -o json prints them all)"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(bytes(value))} bytes>"
    if hasattr(value, "__array__"):
        return _tensor_text(value)
    if isinstance(value, dict | list | tuple):
        short = json.dumps(plain(value), ensure_ascii=False, default=str)
        return short if len(short) <= _LINE else _structure(value)
    return json.dumps(value, default=str)


def _structure(value: Any) -> str:
    """A line for each key or item, long ones cut short: the whole of it is what `-o json` is for."""
    made = plain(value)
    entries = [(f"{key}: ", item) for key, item in made.items()] if isinstance(made, dict) else [("", v) for v in made]
    shown = [_cut(label, item) for label, item in entries[:_ITEMS]]
    left = len(entries) - len(shown)
    return "\n".join([*shown, f"... +{left}"] if left else shown)


def _cut(label: str, item: Any) -> str:
    """On one line, and how much there is of what was cut."""
    line = label + (item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=str))
    line = " ".join(line.split("\n"))
    if len(line) <= _LINE:
        return line.rstrip()
    tail = " ..."
    if isinstance(item, dict | list):
        tail = f" ... ({len(item)} {'keys' if isinstance(item, dict) else 'items'})"
    return line[: _LINE - len(tail)].rstrip() + tail


def _tensor_text(value: Any) -> str:
    import numpy as np

    array = np.asarray(value)
    if array.ndim == 0:
        return str(array.item())
    kind = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    return f"{kind} {np.array2string(array, precision=4, threshold=64)}" if array.size <= 64 else f"<{kind}>"
