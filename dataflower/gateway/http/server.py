"""The HTTP server: uvicorn's protocol on the loop that everything else runs on, without its ticks."""

from __future__ import annotations

import asyncio
import socket
import ssl

import uvicorn
from starlette.types import ASGIApp

from dataflower.errors import FailedPrecondition, InvalidArgument
from dataflower.gateway.http.protocol import Connections, Protocol
from dataflower.gateway.settings import GatewayConfig

KEEP_ALIVE_S = 75
"""An idle connection is kept so long: longer than common proxies keep theirs, so that it is they who close."""
CANCEL_S = 5.0
"""What a cancelled request may take to say so."""
UNIX = "unix:"


class HttpServer:
    """A listening server; made by `listen`."""

    def __init__(self, server: asyncio.Server, connections: Connections, url: str, port: int) -> None:
        self._server = server
        self._connections = connections
        self.url = url
        """Where it is: `http://127.0.0.1:8000`."""
        self.port = port

    async def close(self, grace: float = 0.0) -> None:
        """Take no new connections, let running requests go on for `grace` seconds, then cancel them. Idempotent."""
        self._server.close()
        state = self._connections
        for connection in tuple(state.connections):
            connection.shutdown()
        if state.tasks and grace > 0:
            await asyncio.wait(tuple(state.tasks), timeout=grace)
        running = tuple(state.tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=CANCEL_S)
        await self._hang_up()
        await self._server.wait_closed()

    async def _hang_up(self) -> None:
        """Let the last answers out; whoever does not take them in time is cut off."""
        state = self._connections
        for patience_s in (1.0, CANCEL_S):
            if not state.connections:
                return
            state.emptied.clear()
            try:
                async with asyncio.timeout(patience_s):
                    await state.emptied.wait()
            except TimeoutError:
                for connection in tuple(state.connections):
                    connection.transport.abort()


async def listen(app: ASGIApp, config: GatewayConfig) -> HttpServer:
    """Serve `app` on the loop that runs.

    Raises:
        FailedPrecondition: the port is taken, or the address can't be used.
        InvalidArgument: the TLS files are no certificate and its key, or the port is none.
    """
    assert config.http_port is not None
    settings = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    settings.load()
    connections = Connections()
    loop = asyncio.get_running_loop()
    listener = _bind(config)
    try:
        server = await loop.create_server(
            lambda: Protocol(settings, connections, {}, loop), sock=listener, ssl=_tls(config), backlog=2048
        )
    except BaseException:
        listener.close()
        raise
    port = listener.getsockname()[1]
    scheme = "https" if config.tls_cert_file else "http"
    name = f"[{host_of(config)}]" if listener.family is socket.AF_INET6 else host_of(config)
    return HttpServer(server, connections, f"{scheme}://{name}:{port}", port)


def host_of(config: GatewayConfig) -> str:
    """The interface that HTTP listens on."""
    return config.address.removeprefix("[").removesuffix("]")


def _bind(config: GatewayConfig) -> socket.socket:
    host, port = host_of(config), config.http_port
    if not 0 <= (port or 0) <= 65535:
        raise InvalidArgument(f"http_port must be 0 to 65535, or none, not {port}")
    listener: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With its protocol: asyncio then has no answer wait for an acknowledgement (40 ms), as uvloop always does.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # here, not later: two servers could bind a port that neither listens on yet
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise FailedPrecondition(
            f"can't listen on {host}:{port} for HTTP: {error.strerror or error}; "
            "--http-port 0 picks a free port, --http-port none does without HTTP"
        ) from None
    return listener


def _tls(config: GatewayConfig) -> ssl.SSLContext | None:
    if config.tls_cert_file is None or config.tls_key_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(f"can't use {config.tls_cert_file} for TLS: {error}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context
