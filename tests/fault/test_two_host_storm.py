"""A short storm over two hosts: containers and a server killed, connections broken; all of it, once, nothing left."""

from __future__ import annotations

import pytest

from bench.host_storm import Blow, storm

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(120)]


async def test_blows_against_two_hosts_lose_double_and_leave_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    results = await storm(blows=7, servers=1, seed=5)
    assert results.struck == {Blow.HERE: 1, Blow.THERE: 2, Blow.CONNECTION: 3, Blow.SERVER: 1}
    tally = results.load.tally
    assert (tally.lost, tally.doubled, tally.words) == (0, 0, [])
    assert results.left == {"first": {}, "second": {}}
    assert tally.items > 100
    capfd.readouterr()  # what the second server says of broken connections
