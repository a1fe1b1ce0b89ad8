"""Requests over HTTP: `POST /v1/workflows/NAME/invoke`, the answer whole or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dataflower.clock import Clock
from dataflower.errors import Code, InvalidArgument
from dataflower.gateway.http.status import STATUS
from dataflower.gateway.http.values import Tensors, to_json
from dataflower.loadgen.messages import Door
from dataflower.loadgen.sender import Refusal, Streams

if TYPE_CHECKING:
    import aiohttp

_CODES = {
    status: code for code, status in STATUS.items() if code is not Code.ALREADY_EXISTS and code is not Code.ABORTED
}


class _Answer(msgspec.Struct):
    id: str = ""


class _Failure(msgspec.Struct):
    kind: str = ""
    message: str = ""
    stage: str | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: str = ""
    failure: _Failure | None = None


class _Refused(msgspec.Struct):
    error: _Error


class _Output(msgspec.Struct):
    port: str
    index: int | None = None


def encode_http(inputs: Mapping[str, Any], *, stream: bool) -> bytes:
    """A request body."""
    return json.dumps({"inputs": to_json(dict(inputs), Tensors.BASE64), "stream": stream}).encode()


class HttpSender:
    """Over HTTP/1.1, a connection for each request under way. To be made in the event loop that uses it."""

    def __init__(self, door: Door, clock: Clock) -> None:
        try:
            import aiohttp
        except ImportError:
            raise InvalidArgument("HTTP load needs aiohttp: pip install 'dataflower[bench]'") from None
        self._clock = clock
        self._stream = door.stream
        self._url = f"{door.http_url.rstrip('/')}/v1/workflows/{door.workflow}/invoke?tensors=base64"
        self._headers = {"content-type": "application/json"}
        if door.api_key:
            self._headers["authorization"] = f"Bearer {door.api_key}"
        context = None
        if door.ca_file:
            import ssl

            context = ssl.create_default_context(cafile=door.ca_file)
        self._lost: type[Exception] = aiohttp.ClientConnectionError
        self._broken: type[Exception] = aiohttp.ClientError
        connector = aiohttp.TCPConnector(limit=0, ssl=context if context is not None else True)
        self._client: aiohttp.ClientSession = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )

    def prepared(self, body: bytes, ident: str) -> bytes:  # noqa: D102
        return body  # the server makes up the id

    async def connect(self) -> None:  # noqa: D102
        return

    async def send(self, body: bytes, timeout_s: float | None, streams: Streams) -> Refusal | str:  # noqa: D102
        headers = self._headers
        if timeout_s is not None:
            headers = {**headers, "x-dataflower-deadline-ms": str(max(1, round(timeout_s * 1e3)))}
        try:
            async with self._client.post(self._url, data=body, headers=headers) as answer:
                if answer.status >= 400:
                    return _refusal(answer.status, await answer.read(), answer.headers.get("retry-after"))
                if self._stream:
                    return await self._streamed(answer, streams)
                return msgspec.json.decode(await answer.read(), type=_Answer).id
        except self._lost as error:
            return Refusal(Code.UNAVAILABLE.value, type(error).__name__, message=str(error), lost=True)
        except (self._broken, msgspec.DecodeError) as error:
            return Refusal(Code.UNAVAILABLE.value, type(error).__name__, message=str(error))

    async def _streamed(self, answer: aiohttp.ClientResponse, streams: Streams) -> Refusal | str:
        ident = answer.headers.get("x-invocation-id", "")
        async for name, data in _events(answer.content):
            if name == "output":
                output = msgspec.json.decode(data, type=_Output)
                if output.index is not None:
                    streams.setdefault(output.port, []).append(self._clock.monotonic())
            elif name == "error":
                return _refused(msgspec.json.decode(data, type=_Refused).error, Code.INTERNAL)
            elif name == "done":
                return ident
        return Refusal(Code.UNAVAILABLE.value, "Cut", message="the stream ended before its end", lost=True)

    async def close(self) -> None:  # noqa: D102
        await self._client.close()


async def _events(lines: AsyncIterable[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    name, data = "", b""
    async for line in lines:
        text = line.rstrip(b"\r\n")
        if not text:
            if data:
                yield name, data
            name, data = "", b""
        elif text.startswith(b"event: "):
            name = text[7:].decode()
        elif text.startswith(b"data: "):
            data += text[6:]


def _refusal(status: int, body: bytes, retry_after: str | None) -> Refusal:
    code = _CODES.get(status, Code.INTERNAL)
    try:
        found = _refused(msgspec.json.decode(body, type=_Refused).error, code)
    except msgspec.DecodeError:
        found = Refusal(code.value, f"HTTP {status}", message=body[:200].decode(errors="replace"))
    if retry_after is None or not retry_after.isdigit():
        return found
    return Refusal(found.code, found.kind, found.stage, found.message, float(retry_after))


def _refused(error: _Error, otherwise: Code) -> Refusal:
    said = error.code.upper()
    code = said if said in Code.__members__ else otherwise.value
    failure = error.failure or _Failure()
    return Refusal(code, failure.kind or "Error", failure.stage or "", (failure.message or error.message)[:500])
