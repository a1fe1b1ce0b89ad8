"""Where a server is reached: `HOST:PORT`, or `unix:/path`."""

from __future__ import annotations

import re

_HOST = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.%\w]+\]")


def server_address(value: str) -> str:
    """The address as it came, if it is one. ValueError says what would be."""
    scheme, _, place = value.partition(":")
    if scheme in ("unix", "unix-abstract") and place:
        return value
    host, _, port = value.removeprefix("dns:///").rpartition(":")
    if not _HOST.fullmatch(host) or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        hint = " (of its gRPC port, without http://)" if "://" in value else ""
        raise ValueError(f"expected HOST:PORT, such as 127.0.0.1:8001, or unix:/path, not {value!r}{hint}")
    return value
