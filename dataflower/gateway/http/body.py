"""Request bodies: read up to a limit, unpacked, decoded; and JSON answers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dataflower.errors import InvalidArgument, InvocationFailed
from dataflower.gateway.http.presence import LEFT
from dataflower.gateway.http.status import BodyTooLarge

JSON = "application/json"
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Content coding -> zlib's `wbits`."""


class JsonResponse(Response):
    """A JSON body. NaN and infinities become null."""

    media_type = JSON

    def render(self, content: Any) -> bytes:
        """Called by the constructor."""
        return msgspec.json.encode(content)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> JsonResponse:
    """A JSON answer."""
    return JsonResponse(content, status, headers=headers)


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, unpacked if it is compressed.

    Raises:
        BodyTooLarge: it has more than `limit` bytes, packed or unpacked.
        InvalidArgument: it can't be unpacked.
        InvocationFailed: the caller left before its end.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
    except ClientDisconnect:
        raise InvocationFailed(LEFT) from None
    body = b"".join(parts)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    return body if coding == "identity" else _unpack(body, coding, limit)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes; raise `max_message_bytes` in the server's settings")


def _unpack(body: bytes, coding: str, limit: int) -> bytes:
    if coding not in _WINDOW:
        raise InvalidArgument(f"content-encoding {coding!r} is not known here; known: {', '.join(_WINDOW)}")
    unpacker = zlib.decompressobj(_WINDOW[coding])
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidArgument(f"the body is not {coding}: {error}") from None
    if len(data) > limit:
        raise _too_large(limit)
    if not unpacker.eof:
        raise InvalidArgument(f"the body is cut off: its {coding} data has no end")
    return data


def json_object(body: bytes) -> dict[str, Any]:
    """A JSON object; InvalidArgument if it is none."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidArgument(f"the body must be a JSON object, not {type(content).__name__}")
    return content
