"""Results that nobody reads, and timers that nobody needs any more."""

from __future__ import annotations

from dataflower.core import commands
from dataflower.core.config import CoreConfig
from dataflower.core.timers import Timers
from dataflower.testing.story import Story, stage, workflow
from dataflower.wire import TensorRef, Value

ONE = workflow([stage("a", {"x": "inputs.x"})], {"r": "a.out"})
TTL_S = 60.0


def large(container: int) -> Value:
    """A value in the memory of a container."""
    return Value(b"\xc0", (TensorRef(container << 16, 0, 0, 8, "UINT8", (8,)),))


def finished(result: Value | int) -> Story:
    story = Story(ONE, config=CoreConfig(output_ttl_s=TTL_S))
    story.invoke(x=1)
    story.done("a", out=result)
    assert story.finished == {"i": None}
    return story


def expired(story: Story) -> int:
    return sum(isinstance(command, commands.ExpireOutputs) for command in story.said)


def test_a_result_that_nobody_reads_expires_and_its_memory_comes_back() -> None:
    story = finished(large(1))
    story.wait(TTL_S / 2)
    assert expired(story) == 0
    story.wait(TTL_S)
    assert expired(story) == 1
    assert story.core.statistics().slots == 1  # whoever reads it may be in the middle
    story.release()
    assert story.core.statistics().slots == 0
    story.wait(2 * TTL_S)
    assert expired(story) == 1


def test_a_result_that_is_not_let_go_of_is_asked_for_again() -> None:
    story = finished(large(1))
    story.wait(TTL_S + 1)
    story.wait(TTL_S + 1)
    assert expired(story) == 2


def test_what_was_read_or_released_does_not_expire() -> None:
    for is_released in (False, True):
        story = finished(large(1))
        if is_released:
            story.release()
        else:
            story.take("r", 1)
        story.wait(2 * TTL_S)
        assert expired(story) == 0


def test_small_results_hold_no_memory_and_stay() -> None:
    story = finished(7)
    story.wait(2 * TTL_S)
    assert expired(story) == 0


def test_cancelled_timers_do_not_pile_up_and_the_others_still_fire() -> None:
    timers = Timers()
    fired: list[float] = []
    kept = [timers.at(1e6 + number, fired.append) for number in range(10)]
    for number in range(20_000):
        timers.at(2e6 + number, fired.append).cancel()
    assert len(timers._heap) < 1000
    assert len(timers) == len(kept)
    timers.fire(3e6)
    assert fired == [3e6] * len(kept)
