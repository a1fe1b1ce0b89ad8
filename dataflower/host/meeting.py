"""How two hosts come together: a TCP connection, TLS if it is configured, and each proves that it knows the token.

The token itself never travels: both sides answer the other's random challenge with an HMAC-SHA256 under it. TLS keeps
others from reading or taking over the connection; with a certificate authority of its own it is proof enough.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dataflower.channel.connection import tune
from dataflower.clock import SystemClock
from dataflower.errors import InvalidArgument
from dataflower.host import peer_wire
from dataflower.host.peer_wire import Challenge, Greeting, Refusal, Welcome

T = TypeVar("T")

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 4096
_NONCE_BYTES = 32
SESSION_BYTES = 16
MEETING_S = 10.0
"""How long a meeting may take."""
_now = SystemClock().monotonic


class Refused(Exception):
    """The other side does not want to talk, or is not to be trusted."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How hosts know each other. `cert`, `key`, `ca`: PEM files; any of them set means TLS."""

    token: str = ""
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @property
    def is_tls(self) -> bool:
        """Whether connections are encrypted."""
        return any((self.cert, self.key, self.ca))

    def check(self, *, listens: bool) -> None:
        """Raise InvalidArgument if strangers could come in, or the files don't go together."""
        if (self.cert is None) != (self.key is None):
            raise InvalidArgument("TLS between hosts needs both peer_tls_cert_file and peer_tls_key_file")
        if listens and self.is_tls and self.cert is None:
            raise InvalidArgument("TLS between hosts needs peer_tls_cert_file and peer_tls_key_file")
        if not self.token and not (self.cert is not None and self.ca is not None):
            raise InvalidArgument(
                "hosts must know each other: set peer_token (the same on both, say from `openssl rand -hex 32`), or "
                "peer_tls_cert_file, peer_tls_key_file and peer_tls_ca_file"
            )

    def context(self, *, listens: bool) -> ssl.SSLContext | None:
        """For one direction; None without TLS. Raises InvalidArgument for files that can't be used."""
        if not self.is_tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if listens else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password=str)
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            elif not listens:
                context.load_default_certs()
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"the TLS files for peers can't be used: {error}") from error
        if listens and self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def proof(self, role: bytes, *parts: bytes) -> bytes:
        """That the token is known."""
        return hmac.digest(self.token.encode(), b"\x00".join((role, *parts)), hashlib.sha256)


async def meet_lender(
    address: str,
    credentials: Credentials,
    context: ssl.SSLContext | None,
    greeting: tuple[str, bytes, bool],
    timeout_s: float,
    *,
    visits: bool = False,
) -> tuple[socket.socket, Welcome, tuple[float, float, float]]:
    """Connect to `host:port` and greet with (own name, session, whether it resumes). `visits`: as a neighbour.

    Returns the connection, the answer, and what clocks showed: this one as the greeting left, the lender's as it
    answered, and this one as the answer was here, for `OtherClock.met`. Raises OSError, TimeoutError, Refused.
    """
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    async with asyncio.timeout(MEETING_S):
        family, kind, protocol, _, target = (await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM))[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            tune(sock, timeout_s)
            await loop.sock_connect(sock, target)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                await _attempt(sock, sock.do_handshake)
            return sock, *await _greet(sock, credentials, greeting, visits)
        except BaseException:
            sock.close()
            raise


async def _greet(
    sock: socket.socket, credentials: Credentials, greeting: tuple[str, bytes, bool], visits: bool
) -> tuple[Welcome, tuple[float, float, float]]:
    name, session, resumes = greeting
    challenge = peer_wire.decode_challenge(await _receive(sock))
    _check_version(challenge.version, challenge.name)
    nonce = os.urandom(_NONCE_BYTES)
    proof = credentials.proof(_role(visits), challenge.nonce, nonce, session)
    began = _now()
    await _send(sock, Greeting(peer_wire.VERSION, name, session, resumes, nonce, proof, visits))
    answer = peer_wire.decode_welcome(await _receive(sock))
    ended = _now()
    if isinstance(answer, Refusal):
        raise Refused(answer.reason)
    if not hmac.compare_digest(answer.proof, credentials.proof(b"lender", nonce, challenge.nonce, session)):
        raise Refused("it does not know the token (setting peer_token)")
    return answer, (began, answer.monotonic, ended)


async def meet_owner(
    sock: socket.socket,
    credentials: Credentials,
    context: ssl.SSLContext | None,
    name: str,
    admit: Callable[[Greeting], bool],
) -> tuple[socket.socket, Greeting, bool]:
    """The other side of `meet_lender`, for an accepted connection (closed on errors).

    `admit(greeting)`: whether its session can go on or begin. Raises OSError, TimeoutError, Refused.
    """
    try:
        async with asyncio.timeout(MEETING_S):
            if context is not None:
                sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                await _attempt(sock, sock.do_handshake)
            nonce = os.urandom(_NONCE_BYTES)
            await _send(sock, Challenge(peer_wire.VERSION, name, nonce))
            greeting = peer_wire.decode_greeting(await _receive(sock))
            wanted = credentials.proof(_role(greeting.visits), nonce, greeting.nonce, greeting.session)
            if not hmac.compare_digest(greeting.proof, wanted) or len(greeting.session) != SESSION_BYTES:
                await _send(sock, Refusal("the token is another one (setting peer_token)"))
                raise Refused("it does not know the token")
            if greeting.version != peer_wire.VERSION:
                await _send(sock, Refusal(f"host {name} speaks version {peer_wire.VERSION} between hosts"))
                raise Refused(f"it speaks version {greeting.version}")
            known = admit(greeting)
            proof = credentials.proof(b"lender", greeting.nonce, nonce, greeting.session)
            await _send(sock, Welcome(proof, known, _now()))
            return sock, greeting, known
    except BaseException:
        sock.close()
        raise


def _role(visits: bool) -> bytes:
    return b"neighbour" if visits else b"owner"


def _check_version(version: int, name: str) -> None:
    if version != peer_wire.VERSION:
        raise Refused(f"host {name} speaks version {version} between hosts, this one {peer_wire.VERSION}")


async def _send(sock: socket.socket, message: Challenge | Greeting | Welcome | Refusal) -> None:
    payload = peer_wire.encode(message)
    rest = memoryview(_LENGTH.pack(len(payload)) + payload)
    while rest:
        piece = rest
        count = await _attempt(sock, lambda: sock.send(piece), writes=True)  # noqa: B023 - called before the next turn
        rest = rest[count:]


async def _receive(sock: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(await _exactly(sock, _LENGTH.size))
    if length > _MAX_BYTES:
        raise Refused("it is no dataflower host")
    return await _exactly(sock, length)


async def _exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        wanted = count - len(found)
        piece = await _attempt(sock, lambda: sock.recv(wanted))  # noqa: B023 - called before the next turn
        if not piece:
            raise ConnectionResetError("the connection was closed")
        found += piece
    return found


async def _attempt(sock: socket.socket, step: Callable[[], T], *, writes: bool = False) -> T:
    """Do it as soon as the socket is ready for it."""
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            await _ready(sock, False)
        except ssl.SSLWantWriteError:
            await _ready(sock, True)
        except BlockingIOError:
            await _ready(sock, writes)


async def _ready(sock: socket.socket, writes: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    descriptor = sock.fileno()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writes else loop.add_reader)(descriptor, tell)
    try:
        await ready
    finally:
        (loop.remove_writer if writes else loop.remove_reader)(descriptor)
