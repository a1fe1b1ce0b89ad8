"""The line that tests put between two hosts, as a proxy: everything passes in order, and it ends when it is ended."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dataflower.testing.line import Line


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def test_the_proxy_passes_everything_in_order_and_ends_when_both_sides_have() -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    line = Line(server.sockets[0].getsockname()[:2], 0.002, 50e6)
    await line.start()
    content = bytes(range(256)) * 4000
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)

        async def send() -> None:
            writer.write(content)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        assert await reader.read(-1) == content
        await sending
        writer.close()
        assert line.passed == 2 * len(content)
        assert not line.pairs, "nothing is held once both sides have ended"
    finally:
        await line.close()
        server.close()
        await server.wait_closed()


async def test_a_cut_ends_both_sides_and_a_closed_line_lets_nobody_through() -> None:
    ended = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    line = Line(server.sockets[0].getsockname()[:2], 60.0)
    await line.start()
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", line.port))
        await loop.sock_sendall(sock, b"on its way for a minute")
        while not line.passed:
            await asyncio.sleep(0)
        line.cut()
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(sock, 1)
    await ended.wait()
    line.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", line.port)
    await line.close()
    server.close()
    await server.wait_closed()
