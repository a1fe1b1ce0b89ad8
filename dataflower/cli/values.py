"""Results as text and as JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

SHOWN = 1024
"""Elements of a tensor, or bytes, up to which the data itself is printed."""
_LINE = 100
_ITEMS = 8


def plain(value: Any) -> Any:
    """A value with nothing in it that JSON lacks: tensors become {dtype, shape, data}, bytes {nbytes, base64}.

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
    if hasattr(value, "__array__"):
        return _tensor(value)
    return value


def _tensor(value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    if array.ndim == 0:
        return array.item()
    shown = {"data": array.tolist()} if array.size <= SHOWN else {}
    return {"dtype": str(array.dtype), "shape": list(array.shape), **shown}


def text(value: Any) -> str:
    """A value for people: strings as they are, tensors by type and shape (small ones with their data)."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(bytes(value))} bytes>"
    if hasattr(value, "__array__"):
        return _tensor_text(value)
    if isinstance(value, dict | list | tuple):
        short = json.dumps(plain(value), ensure_ascii=False, default=str)
        return short if len(short) <= _LINE else _structure(value)
    return json.dumps(value, default=str)


def _structure(value: Any) -> str:
    """Over several lines, long lists cut short: the whole of it is what `-o json` is for."""
    from rich.pretty import pretty_repr

    return pretty_repr(plain(value), max_width=_LINE, max_length=_ITEMS, max_string=400)


def _tensor_text(value: Any) -> str:
    import numpy as np

    array = np.asarray(value)
    if array.ndim == 0:
        return str(array.item())
    kind = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    return f"{kind} {np.array2string(array, precision=4, threshold=64)}" if array.size <= 64 else f"<{kind}>"
