"""`serve` opens the front door: gRPC, and HTTP beside it."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from importlib import metadata
from pathlib import Path
from types import TracebackType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dataflower.clock import Clock, SystemClock
from dataflower.config.sources import load_text
from dataflower.errors import FailedPrecondition, InvalidArgument
from dataflower.gateway._generated import inference_pb2, inference_pb2_grpc, workflow_pb2, workflow_pb2_grpc
from dataflower.gateway.guard import Interceptor
from dataflower.gateway.health import HealthService
from dataflower.gateway.http.app import application
from dataflower.gateway.http.server import UNIX, HttpServer, listen
from dataflower.gateway.http.site import Site
from dataflower.gateway.inference import InferenceService
from dataflower.gateway.metrics import Metrics
from dataflower.gateway.service import Loader, WorkflowService
from dataflower.gateway.settings import GatewayConfig
from dataflower.host.api import HostApi

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
WORKFLOWS = workflow_pb2.DESCRIPTOR.services_by_name["WorkflowService"].full_name
INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class Gateway:
    """A running front door; made by `serve`. Usable as `async with`."""

    def __init__(
        self,
        server: grpc.aio.Server,
        health: HealthService,
        site: Site,
        *,
        grpc_port: int,
        http: HttpServer | None = None,
    ) -> None:
        self._server = server
        self._health = health
        self._site = site
        self._http = http
        self.address = site.config.address
        self.grpc_port = grpc_port
        """The port that it listens on (0 for a unix socket)."""

    @property
    def http_url(self) -> str | None:
        """Where HTTP is, `http://127.0.0.1:8000`; None without it."""
        return None if self._http is None else self._http.url

    async def close(self, grace: float = 0.0) -> None:
        """Take no new calls, let running ones go on for `grace` seconds, then cancel them. May be called twice."""
        self._site.closing = True
        self._health.close()
        closing = [self._server.stop(grace)]
        if self._http is not None:
            closing.append(self._http.close(grace))
        await asyncio.gather(*closing)

    async def wait_closed(self) -> None:
        """Until it has been closed and the last call has ended."""
        await self._server.wait_for_termination()

    async def __aenter__(self) -> Gateway:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def serve(
    host: HostApi,
    config: GatewayConfig | None = None,
    *,
    load: Loader = load_text,
    clock: Clock | None = None,
    log_dir: str = "",
) -> Gateway:
    """Listen, and answer from `host` (which the caller owns and closes after the gateway).

    `load` reads the YAML that ApplyWorkflow brings; `log_dir` is where the host's functions write, for ServerStatus.

    Raises:
        FailedPrecondition: the port is taken, or the address can't be used.
        InvalidArgument: a TLS file can't be read, or one of the two is missing.
    """
    config = config or GatewayConfig()
    clock = clock or SystemClock()
    health = HealthService(host)

    async def changed() -> None:
        health.notify()

    version = metadata.version("dataflower")
    server = grpc.aio.server(
        interceptors=(Interceptor(config.api_keys, open_services=(HEALTH,), guarded=(WORKFLOWS, INFERENCE)),),
        options=_options(config),
    )
    workflows = WorkflowService(
        host,
        load=load,
        clock=clock,
        max_message_bytes=config.max_message_bytes,
        version=version,
        changed=changed,
        log_dir=log_dir,
    )
    inference = InferenceService(host, clock=clock, max_message_bytes=config.max_message_bytes, version=version)
    workflow_pb2_grpc.add_WorkflowServiceServicer_to_server(workflows, server)
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if config.reflection:
        reflection.enable_server_reflection((WORKFLOWS, INFERENCE, HEALTH, reflection.SERVICE_NAME), server)
    metrics = Metrics(host)
    host.on_over(metrics.finished)
    host.on_start(metrics.started)
    site = Site(host, clock, config, version, clock.wall(), metrics)
    port = _bind(server, config)
    await server.start()
    try:
        http = await _open_http(site)
    except BaseException:
        await server.stop(None)
        raise
    return Gateway(server, health, site, grpc_port=port, http=http)


async def _open_http(site: Site) -> HttpServer | None:
    """HTTP, unless it is off, or the address is a unix socket (whose clients are gRPC's)."""
    config = site.config
    if config.http_port is None or config.address.startswith(UNIX):
        return None
    return await listen(application(site), config)


def _options(config: GatewayConfig) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # `answer_size.fitting` refuses long answers, with a better message
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    )


def _bind(server: grpc.aio.Server, config: GatewayConfig) -> int:
    unix = config.address.startswith(UNIX)
    host = f"[{config.address}]" if ":" in config.address and not config.address.startswith("[") else config.address
    target = config.address if unix else f"{host}:{config.port}"
    credentials = _credentials(config)
    try:
        port = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
    except RuntimeError:
        why = "is another server running there?" if unix else _obstacle(config.address.strip("[]"), config.port)
        raise FailedPrecondition(f"can't listen on {target}: {why}") from None
    return 0 if unix else port


def _obstacle(host: str, port: int) -> str:
    """Why nothing can listen there, found out by trying it: gRPC does not say."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except PermissionError as error:
        return f"{error.strerror}; --port takes one above 1023"
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return f"{error.strerror or error}; --address names an interface of this machine"
    return "is another server running there? --port 0 picks a free port"


def _credentials(config: GatewayConfig) -> grpc.ServerCredentials | None:
    cert, key = config.tls_cert_file, config.tls_key_file
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise InvalidArgument("TLS needs both tls_cert_file and tls_key_file")
    pair = (_read(key), _read(cert))
    try:  # gRPC would say no more than that it can't listen
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=str)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise InvalidArgument(
            f"{cert} and {key} are no certificate and its key, unencrypted, in PEM: {reason}"
        ) from None
    return grpc.ssl_server_credentials([pair])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"can't read the TLS file {path}: {error.strerror}") from None
