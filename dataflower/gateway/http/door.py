"""What every HTTP request goes through: its id, who may come in, what an error looks like, what is counted."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Message, Receive, Scope, Send

from dataflower.errors import Code, DataflowerError, InvocationFailed
from dataflower.gateway.guard import REQUEST_ID_KEY, request_id
from dataflower.gateway.http.body import json_response
from dataflower.gateway.http.presence import STOPPING
from dataflower.gateway.http.site import Site
from dataflower.gateway.http.status import error_object, headers_of, http_status, openai_object

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/v2/health/live", "/v2/health/ready"})
"""Answered without a key: whether the server lives, and a page that holds nothing by itself."""
OPENAI_PATHS = ("/v1/chat/", "/v1/completions", "/v1/embeddings", "/v1/models")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")

Counted = Callable[[str, str, int, float], None]
"""(method, route, status, seconds) of a request that is over."""


class Door:
    """The ASGI application: `routes` behind the checks."""

    def __init__(self, site: Site, routes: Sequence[BaseRoute], counted: Counted) -> None:
        self._site = site
        self._router = Router(routes, redirect_slashes=False, default=_nowhere)
        self._routes: dict[Any, str] = {route.endpoint: route.path for route in routes if isinstance(route, Route)}
        self._counted = counted
        self._keys = tuple(key.encode() for key in (*site.config.api_keys, *site.config.admin_keys))
        self._locked = bool(site.config.api_keys)
        self._hosts = allowed_hosts(site)
        self._origins = frozenset(site.config.http_allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it. Requests only: there are no websockets and no lifespan here."""
        began = self._site.clock.monotonic()
        headers = Headers(scope=scope)
        scope["app"] = self  # so that the router raises instead of answering in words of its own
        given = headers.get(REQUEST_ID_KEY, "")
        ident = given if _ID.fullmatch(given) else os.urandom(8).hex()
        request_id.set(ident)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._head(MutableHeaders(raw=message["headers"]), headers, ident)
            await send(message)

        try:
            try:
                await self._enter(scope, headers, receive, answer)
            except (Exception, asyncio.CancelledError) as error:  # the top of a request: it gets an answer
                if status:  # half an answer is out: the connection must break, so that nobody takes it for whole
                    raise
                await _refusal(scope, error, ident)(scope, receive, answer)
        finally:
            route = self._routes.get(scope.get("endpoint"), "other")
            self._counted(scope["method"], route, status or 499, self._site.clock.monotonic() - began)

    async def _enter(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        self._check_host(headers)
        preflight = self._check_origin(scope, headers)
        if preflight is not None:
            await preflight(scope, receive, send)
            return
        if self._locked and scope["path"] not in OPEN_PATHS:
            self._check_key(headers.get("authorization", ""))
        await self._router(scope, receive, send)

    # --- who may come in -------------------------------------------------------------------------------------

    def _check_host(self, headers: Headers) -> None:
        """A page that a browser shows must not reach a server on loopback by a name of its own (DNS rebinding)."""
        if self._hosts is None:
            return
        host = _name(headers.get("host", ""))
        if host not in self._hosts:
            raise DataflowerError(
                f"this server does not answer to the name {host!r}; add it to `http_allowed_hosts` in its settings",
                code=Code.PERMISSION_DENIED,
            )

    def _check_origin(self, scope: Scope, headers: Headers) -> Response | None:
        """Pages of other sites are refused unless they are allowed; then their preflights are answered."""
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2] == headers.get("host"):
            return None
        if not {origin, "*"} & self._origins:
            raise DataflowerError(
                f"pages of {origin} may not call this server; add it to `http_allowed_origins` in its settings",
                code=Code.PERMISSION_DENIED,
            )
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        wanted = headers.get("access-control-request-headers", "")
        return Response(
            status_code=204,
            headers={
                "access-control-allow-methods": "GET, POST, PUT, OPTIONS",
                "access-control-allow-headers": wanted,
                "access-control-max-age": "600",
            },
        )

    def _check_key(self, authorization: str) -> None:
        if not knows(authorization, self._keys):
            why = "the API key is not valid" if authorization else "no API key was sent"
            raise DataflowerError(f"{why} (authorization: Bearer KEY)", code=Code.UNAUTHENTICATED)

    # --- the head of an answer -------------------------------------------------------------------------------

    def _head(self, answer: MutableHeaders, asked: Headers, ident: str) -> None:
        answer[REQUEST_ID_KEY] = ident
        answer["date"] = formatdate(self._site.clock.wall(), usegmt=True)
        answer["x-content-type-options"] = "nosniff"
        if trace := _TRACEPARENT.fullmatch(asked.get("traceparent", "")):
            answer["traceparent"] = f"00-{trace[1]}-{os.urandom(8).hex()}-{trace[2]}"
        if (origin := asked.get("origin")) and {origin, "*"} & self._origins:
            answer["access-control-allow-origin"] = origin
            answer.add_vary_header("origin")


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that don't match
        return ""


def knows(authorization: str, keys: Sequence[bytes]) -> bool:
    """Whether `Bearer KEY` names one of the keys; takes as long for a wrong one as for a right one."""
    scheme, _, key = authorization.partition(" ")
    found = [hmac.compare_digest(key.strip().encode("latin-1", "replace"), valid) for valid in keys]
    return scheme.lower() == "bearer" and any(found)


def allowed_hosts(site: Site) -> frozenset[str] | None:
    """Names under which the server answers; None for any. On loopback, and without keys, only its own."""
    config = site.config
    if config.http_allowed_hosts:
        return None if "*" in config.http_allowed_hosts else LOOPBACK | frozenset(config.http_allowed_hosts)
    address = config.address.strip("[]")
    return LOOPBACK | {address} if address in LOOPBACK or address.startswith("127.") else None


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)


def _refusal(scope: Scope, error: BaseException, ident: str) -> Response:
    headers: dict[str, str] = {}
    path = scope["path"]
    if isinstance(error, HTTPException):
        code = {404: Code.NOT_FOUND, 405: Code.UNIMPLEMENTED}.get(error.status_code, Code.INVALID_ARGUMENT)
        what = f"there is nothing at {path}" if code is Code.NOT_FOUND else f"{scope['method']} can't be done to {path}"
        headers = dict(error.headers or {})
        said, status = DataflowerError(f"{what}; GET /docs shows what there is", code=code), error.status_code
    else:
        said = _as_ours(error, ident)
        headers, status = headers_of(said), http_status(said)
    if isinstance(error, asyncio.CancelledError):
        headers["connection"] = "close"
    told = openai_object(said, path) if path.startswith(OPENAI_PATHS) else error_object(said, traceback=True)
    if path == "/v2" or path.startswith("/v2/"):  # the Open Inference Protocol wants the words alone
        return json_response({"error": told["message"]}, status, headers)
    return json_response({"error": told}, status, headers)


def _as_ours(error: BaseException, ident: str) -> DataflowerError:
    if isinstance(error, DataflowerError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return InvocationFailed(STOPPING)
    log.error("a request failed (request %s)", ident, exc_info=error)
    return DataflowerError(f"the server failed: {type(error).__name__}")
