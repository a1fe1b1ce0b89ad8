"""Models that are held for the sake of calls to come: in nobody's way."""

from __future__ import annotations

from dataflower.checkpoint import tiers
from dataflower.checkpoint.layout import SEGMENT_BYTES

CAP = 4 * SEGMENT_BYTES


def has(tier: tiers.MemoryTier, client: int, model: str, segments: int, density: float | None = None) -> list[object]:
    tier.handle(tiers.Asked(client, model, density), 0.0)
    said = tier.handle(tiers.Located(model, model, segments * SEGMENT_BYTES), 0.0)
    loads = [command for command in said if isinstance(command, tiers.Load)]
    return [*said, *(more for load in loads for more in tier.handle(tiers.Loaded(load.key), 0.0))]


def test_what_is_needed_drives_out_what_is_held_least_dense_first() -> None:
    tier = tiers.MemoryTier(CAP)
    has(tier, 1, "dear", 2, 2.0)
    has(tier, 2, "cheap", 2, 1.0)
    said = has(tier, 3, "needed", 2)
    assert tiers.Evict("cheap") in said
    assert tiers.Drop(2) in said
    assert tiers.Grant(3, "needed") in said
    assert tier.resident().keys() == {"dear", "needed"}


def test_wish_drives_out_only_what_is_worth_less() -> None:
    tier = tiers.MemoryTier(CAP)
    has(tier, 1, "dear", 3, 2.0)
    (refused,) = has(tier, 2, "cheap", 2, 1.0)
    assert isinstance(refused, tiers.Refuse)
    tier.handle(tiers.Valued(1, 0.5), 0.0)
    assert tiers.Drop(1) in has(tier, 3, "cheap", 2, 1.0)


def test_who_needs_room_waits_for_the_end_of_a_load_that_nobody_needs() -> None:
    tier = tiers.MemoryTier(CAP)
    tier.handle(tiers.Asked(1, "wish", 1.0), 0.0)
    tier.handle(tiers.Located("wish", "wish", 3 * SEGMENT_BYTES), 0.0)
    tier.handle(tiers.Asked(2, "needed"), 0.0)
    assert tier.handle(tiers.Located("needed", "needed", 2 * SEGMENT_BYTES), 0.0) == []
    assert tier.is_parked("needed")
    said = tier.handle(tiers.Loaded("wish"), 1.0)
    assert said[0] == tiers.Grant(1, "wish")
    assert tiers.Drop(1) in said
    assert isinstance(said[-1], tiers.Load)
    assert tiers.Grant(2, "needed") in tier.handle(tiers.Loaded("needed"), 2.0)


def test_unwanted_model_leaves_when_its_last_user_does_and_its_memory_goes_back() -> None:
    tier = tiers.MemoryTier(CAP)
    has(tier, 1, "m", 2)
    assert tier.handle(tiers.Unwanted(9, "m"), 1.0) == []
    said = tier.handle(tiers.Gone(1), 2.0)
    assert said == [tiers.Evict("m"), tiers.Trim(2), tiers.Forgotten(9, True)]
    assert (tier.held_bytes, tier.resident()) == (0, {})


def test_unwanted_model_that_is_only_held_leaves_at_once() -> None:
    tier = tiers.MemoryTier(CAP)
    has(tier, 1, "m", 1, 5.0)
    said = tier.handle(tiers.Unwanted(9, "m"), 1.0)
    assert said == [tiers.Evict("m"), tiers.Trim(1), tiers.Drop(1), tiers.Forgotten(9, True)]
    assert tier.handle(tiers.Gone(1), 1.0) == []


def test_unwanted_model_stays_if_it_is_pinned_or_asked_for() -> None:
    tier = tiers.MemoryTier(CAP)
    has(tier, 1, "m", 1)
    tier.handle(tiers.Unwanted(9, "m"), 1.0)
    tier.handle(tiers.Asked(2, "m"), 1.0)
    assert tier.handle(tiers.Located("m", "m", SEGMENT_BYTES), 1.0) == [tiers.Forgotten(9, False), tiers.Grant(2, "m")]
    assert tier.handle(tiers.Gone(1), 1.0) == []
    assert tier.handle(tiers.Gone(2), 1.0) == []
    tier.handle(tiers.Pins(frozenset({"m"})), 1.0)
    assert tier.handle(tiers.Unwanted(9, "m"), 1.0) == [tiers.Forgotten(9, False)]
    assert tier.resident().keys() == {"m"}


def test_who_does_not_wait_any_more_is_not_answered_and_what_is_not_there_is_gone() -> None:
    tier = tiers.MemoryTier(CAP)
    assert tier.handle(tiers.Unwanted(9, "m"), 1.0) == [tiers.Forgotten(9, True)]
    has(tier, 1, "m", 1)
    tier.handle(tiers.Unwanted(9, "m"), 1.0)
    tier.handle(tiers.Gone(9), 1.0)
    assert tier.handle(tiers.Gone(1), 1.0) == []
    assert tier.resident().keys() == {"m"}
