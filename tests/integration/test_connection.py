"""A connection that carries a mux: who closes it hears nothing of it afterwards."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dataflower.channel.connection import Connection
from dataflower.channel.mux import Mux


def nothing_comes(*_: object) -> memoryview:
    raise AssertionError("nobody has sent anything")


@pytest.mark.parametrize("closed", [False, True])
def test_a_loss_is_told_unless_it_was_closed_before_that(closed: bool) -> None:
    async def lose() -> list[bool]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        told: list[bool] = []
        mux = Mux(nothing_comes, lambda event: None)
        connection = Connection(asyncio.get_running_loop(), ours, mux, lambda reason, fatal: told.append(fatal))
        theirs.close()
        connection._on_readable()  # the end is seen, and will be told in the next turn of the loop
        if closed:
            connection.close()
        await asyncio.sleep(0.01)
        connection.close()
        return told

    assert asyncio.run(lose()) == ([] if closed else [False])
