"""`dataflower serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.options import CodePath, ConfigFile
from dataflower.cli.terminal import terminal
from dataflower.errors import InvalidArgument

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    from dataflower.cli.local import LocalHost
    from dataflower.config.settings import Config
    from dataflower.gateway.server import Gateway


def serve(
    *,
    address: Annotated[
        str | None, typer.Option("--address", help="Interface to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0 picks a free one.", show_default="8001")
    ] = None,
    http_port: Annotated[
        str | None,
        typer.Option(
            "--http-port",
            metavar="PORT",
            help="For HTTP; 0 picks a free one, none does without.",
            show_default="8000, and 0 with --port 0",
        ),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option("--state-dir", help="For workflows, records and logs.", show_default="~/.local/state/dataflower"),
    ] = None,
    code_path: CodePath = None,
    workflow: Annotated[
        list[Path] | None, typer.Option("--workflow", metavar="FILE", help="Apply this file at start (repeatable).")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="NAME=HOST:PORT", help="A host that may run stages for this one (repeatable)."),
    ] = None,
    peer_port: Annotated[
        str | None,
        typer.Option(
            "--peer-port", metavar="PORT", help="Run stages for other hosts; 0 picks a free one.", show_default="none"
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Start a server: workflows in, invocations over gRPC and HTTP, until a signal stops it.

    SIGTERM or Ctrl-C drains: running invocations may end. A second signal stops at once.

    Example: dataflower serve --workflow workflows/wordcount.yaml --port 0

    Two hosts, the same peer_token on both (docs/hosts.md): dataflower serve --peer-port 8003, and on the other
    dataflower serve --peer b=10.0.0.2:8003
    """
    import dataclasses
    import logging
    import os

    from dataflower.cli.local import run_loop
    from dataflower.cli.settings import composed
    from dataflower.cli.workflows import beside

    flags = {
        "address": address,
        "port": port,
        "http_port": http_port,
        "state_dir": state_dir,
        "code_path": code_path,
        "peers": peer or None,
        "peer_port": peer_port,
    }
    found = composed(flags, config)
    settings = found.config
    if settings.port == 0 and found.origins["http_port"].kind == "default":
        settings = dataclasses.replace(settings, http_port=0)  # who wants any port wants no fixed one beside it
    for place in settings.code_path:
        if not Path(place).expanduser().is_dir():
            raise InvalidArgument(f"no directory {place!r} to find functions in (--code-path)")
    settings = beside(settings, workflow or ())
    logging.basicConfig(
        level=logging.INFO if terminal().debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr what we say ourselves
    run_loop(_serve(settings, tuple(workflow or ())))


async def _serve(settings: Config, files: tuple[Path, ...]) -> None:
    import asyncio

    from dataflower.cli.local import open_host
    from dataflower.cli.workflows import load_file, loader
    from dataflower.config.convert import host_config, shared
    from dataflower.gateway.server import serve as open_gateway
    from dataflower.gateway.settings import GatewayConfig

    signals = _Signals(asyncio.get_running_loop())
    read = loader(settings, option="`serve --code-path`")
    workflows = [load_file(file, settings) for file in files]
    config = host_config(settings)
    async with open_host(config, read) as host:
        for workflow, source in workflows:
            status = await host.apply(workflow, source)
            terminal().note(f"applied {status.name}@{status.version}")
        gateway = await open_gateway(
            host, GatewayConfig(**shared(settings, GatewayConfig)), load=read, log_dir=str(config.logs)
        )
        try:
            print(f"listening on {_where(gateway)}", flush=True)
            if gateway.http_url is not None:
                print(
                    f"HTTP on {gateway.http_url} (OpenAI clients: {gateway.http_url}/v1, a browser: /docs)", flush=True
                )
            if host.peer_port is not None:
                print(f"other hosts come in on {config.peer_address}:{host.peer_port}", flush=True)
            terminal().note(f"state in {config.state_dir}, functions from {', '.join(config.code_path)}")
            await signals.first.wait()
            await _stop(host, gateway, signals, settings.drain_timeout_s)
        finally:
            await gateway.close()


class _Signals:
    """The first SIGTERM or Ctrl-C, and the second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio
        import signal

        self.first = asyncio.Event()
        self.second = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _stop(host: LocalHost, gateway: Gateway, signals: _Signals, drain_timeout_s: float) -> None:
    """Let running calls end, then running submissions; at the second signal stop caring."""
    import asyncio
    import os

    terminal().note("draining (another signal stops at once)")
    host.drain()
    if await _unless(signals.second, gateway.close(drain_timeout_s)):
        cut = any(workflow.running for workflow in host.workflows())
        closing = asyncio.create_task(host.close(drain_timeout_s))
        if await _unless(signals.second, asyncio.shield(closing)):
            return
        # Closing can't be hurried. Dying here is safe: containers leave when their sockets close, and what was
        # submitted is in the journal and runs again at the next start.
        terminal().note("stopping at once")
        os._exit(ExitCode.FAILED if cut else ExitCode.FINE)
    terminal().note("stopping at once")
    await gateway.close()
    await host.close(0.0)


async def _unless(event: asyncio.Event, work: Awaitable[None]) -> bool:
    """Whether `work` ended before the event came; if not, it is cancelled."""
    import asyncio

    working = asyncio.ensure_future(work)
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return False
    working.result()
    return True


def _where(gateway: Gateway) -> str:
    return f"{gateway.address}:{gateway.grpc_port}" if gateway.grpc_port else gateway.address
