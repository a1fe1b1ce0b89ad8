"""q + n/b."""

import pytest

from dataflower.checkpoint.estimate import Lane, Tier, average, load_time

LANES = {Tier.REMOTE: Lane(100e6), Tier.DISK: Lane(2e9, queued_bytes=1_000_000_000), Tier.MEMORY: Lane(20e9)}


@pytest.mark.parametrize(
    ("at", "to", "seconds"),
    [
        (Tier.MEMORY, Tier.MEMORY, 0.05),
        (Tier.DISK, Tier.MEMORY, 0.05 + 0.5 + 1.0),
        (Tier.DISK, Tier.DEVICE, 0.05 + 0.5 + 1.0),
        (Tier.REMOTE, Tier.MEMORY, 0.05 + 0.5 + 20.0),
        (Tier.MEMORY, Tier.DEVICE, 0.05 + 0.1),
    ],
)
def test_the_slowest_tier_on_the_way_counts(at: Tier, to: Tier, seconds: float) -> None:
    assert load_time(2_000_000_000, at, LANES, to, attach_s=0.05) == pytest.approx(seconds)


def test_what_was_not_measured_is_not_guessed() -> None:
    with pytest.raises(KeyError):
        load_time(1, Tier.REMOTE, {Tier.DISK: Lane(1.0)})
    with pytest.raises(KeyError):
        load_time(1, Tier.DISK, {Tier.DISK: Lane(0.0)})


def test_a_moving_average_starts_with_the_first_measurement() -> None:
    assert average(0.0, 5.0) == 5.0
    assert 5.0 < average(5.0, 10.0) < 10.0
