"""What is asked for often is done once in a turn of the loop."""

from __future__ import annotations

import asyncio

from dataflower.host.soon import Soon


async def test_it_is_done_once_in_the_next_turn_and_again_when_asked_again() -> None:
    loop = asyncio.get_running_loop()
    done: list[int] = []
    soon = Soon(loop, lambda: done.append(len(done)))
    soon()
    soon()
    assert done == []
    await asyncio.sleep(0)
    assert done == [0]
    soon()
    await asyncio.sleep(0)
    assert done == [0, 1]


async def test_asking_while_it_is_done_has_it_done_once_more() -> None:
    done: list[str] = []

    def do() -> None:
        done.append("once")
        if len(done) == 1:
            soon()

    soon = Soon(asyncio.get_running_loop(), do)
    soon()
    for _ in range(3):
        await asyncio.sleep(0)
    assert done == ["once", "once"]
