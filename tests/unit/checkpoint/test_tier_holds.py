"""Models that are held for the sake of calls to come: in nobody's way."""

from __future__ import annotations

from dataflower.checkpoint.layout import SEGMENT_BYTES
from dataflower.checkpoint.tier_commands import Drop, Evict, Forgotten, Grant, Load, Refuse, Trim
from dataflower.checkpoint.tier_events import Asked, Gone, Loaded, Located, Pins, Unwanted, Valued
from dataflower.checkpoint.tiers import MemoryTier

CAP = 4 * SEGMENT_BYTES


def has(tier: MemoryTier, client: int, model: str, segments: int, density: float | None = None) -> list[object]:
    tier.handle(Asked(client, model, density), 0.0)
    said = tier.handle(Located(model, model, segments * SEGMENT_BYTES), 0.0)
    loads = [command for command in said if isinstance(command, Load)]
    return [*said, *(more for load in loads for more in tier.handle(Loaded(load.key), 0.0))]


def test_what_is_needed_drives_out_what_is_held_least_dense_first() -> None:
    tier = MemoryTier(CAP)
    has(tier, 1, "dear", 2, 2.0)
    has(tier, 2, "cheap", 2, 1.0)
    said = has(tier, 3, "needed", 2)
    assert Evict("cheap") in said
    assert Drop(2) in said
    assert Grant(3, "needed") in said
    assert tier.resident().keys() == {"dear", "needed"}


def test_wish_drives_out_only_what_is_worth_less() -> None:
    tier = MemoryTier(CAP)
    has(tier, 1, "dear", 3, 2.0)
    (refused,) = has(tier, 2, "cheap", 2, 1.0)
    assert isinstance(refused, Refuse)
    tier.handle(Valued(1, 0.5), 0.0)
    assert Drop(1) in has(tier, 3, "cheap", 2, 1.0)


def test_who_needs_room_waits_for_the_end_of_a_load_that_nobody_needs() -> None:
    tier = MemoryTier(CAP)
    tier.handle(Asked(1, "wish", 1.0), 0.0)
    tier.handle(Located("wish", "wish", 3 * SEGMENT_BYTES), 0.0)
    tier.handle(Asked(2, "needed"), 0.0)
    assert tier.handle(Located("needed", "needed", 2 * SEGMENT_BYTES), 0.0) == []
    assert tier.is_parked("needed")
    said = tier.handle(Loaded("wish"), 1.0)
    assert said[0] == Grant(1, "wish")
    assert Drop(1) in said
    assert isinstance(said[-1], Load)
    assert Grant(2, "needed") in tier.handle(Loaded("needed"), 2.0)


def test_unwanted_model_leaves_when_its_last_user_does_and_its_memory_goes_back() -> None:
    tier = MemoryTier(CAP)
    has(tier, 1, "m", 2)
    assert tier.handle(Unwanted(9, "m"), 1.0) == []
    said = tier.handle(Gone(1), 2.0)
    assert said == [Evict("m"), Trim(2), Forgotten(9, True)]
    assert (tier.held_bytes, tier.resident()) == (0, {})


def test_unwanted_model_that_is_only_held_leaves_at_once() -> None:
    tier = MemoryTier(CAP)
    has(tier, 1, "m", 1, 5.0)
    said = tier.handle(Unwanted(9, "m"), 1.0)
    assert said == [
        Evict("m"),
        Trim(1),
        Drop(1),
        Forgotten(9, True),
    ]
    assert tier.handle(Gone(1), 1.0) == []


def test_unwanted_model_stays_if_it_is_pinned_or_asked_for() -> None:
    tier = MemoryTier(CAP)
    has(tier, 1, "m", 1)
    tier.handle(Unwanted(9, "m"), 1.0)
    tier.handle(Asked(2, "m"), 1.0)
    assert tier.handle(Located("m", "m", SEGMENT_BYTES), 1.0) == [
        Forgotten(9, False),
        Grant(2, "m"),
    ]
    assert tier.handle(Gone(1), 1.0) == []
    assert tier.handle(Gone(2), 1.0) == []
    tier.handle(Pins(frozenset({"m"})), 1.0)
    assert tier.handle(Unwanted(9, "m"), 1.0) == [Forgotten(9, False)]
    assert tier.resident().keys() == {"m"}


def test_who_does_not_wait_any_more_is_not_answered_and_what_is_not_there_is_gone() -> None:
    tier = MemoryTier(CAP)
    assert tier.handle(Unwanted(9, "m"), 1.0) == [Forgotten(9, True)]
    has(tier, 1, "m", 1)
    tier.handle(Unwanted(9, "m"), 1.0)
    tier.handle(Gone(9), 1.0)
    assert tier.handle(Gone(1), 1.0) == []
    assert tier.resident().keys() == {"m"}
