"""A short storm against owners: servers with a lender and a journal, killed under load, and started anew."""

from __future__ import annotations

import pytest

from bench.owner_storm import SUBMITTED, storm

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(120)]


async def test_killed_owners_lose_nothing_that_was_submitted_and_leave_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    results = await storm(kills=1, seed=5)
    tally = results.tally
    assert (tally.lost, tally.doubled, tally.words) == (0, 0, [])
    assert results.left == {}
    assert (results.submitted, results.unclear) == (SUBMITTED, 0)
    assert results.unavailable > 0
    assert tally.items > 20
    capfd.readouterr()  # what the lender says of the owner that is gone
