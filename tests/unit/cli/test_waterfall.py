"""The waterfall: which lines there are, where the bars lie, what a folded stage says."""

from __future__ import annotations

import pytest
from rich.console import Console

from dataflower.cli.waterfall import Waterfall, as_data, bar, end_of, rows
from dataflower.core.trace import InvocationTrace, TaskTrace


def task(stage: str, at: float, *, tag: tuple[int, ...] = (), length: float = 0.1, **other: object) -> TaskTrace:
    times = {"dispatched": at, "fetched": at, "started": at, "ended": at + length, "sent": at + length}
    return TaskTrace(stage, tag, int(other.pop("attempt", 1)), at, **{**times, **other})  # type: ignore[arg-type]


def trace(*tasks: TaskTrace, finished: float = 11.0, **other: float) -> InvocationTrace:
    return InvocationTrace("i1", "video@1", 10.0, finished=finished, tasks=list(tasks), **other)  # type: ignore[arg-type]


def drawn(of: InvocationTrace, width: int = 120, fold: int = 6) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(Waterfall(of, fold))
    return capture.get()


def test_a_task_has_a_line_with_its_tag_and_attempt() -> None:
    lines = rows(trace(task("detect", 10.0), task("crop", 10.1, tag=(2, 3), attempt=2)))
    assert [line.label for line in lines] == ["detect", "crop[2,3] #2"]


def test_many_tasks_fold_into_one_line_with_their_extremes() -> None:
    tasks = [task("crop", 10 + i / 10, tag=(i,), cold=i == 0) for i in range(8)]
    (line,) = rows(trace(*tasks))
    assert line.label == "crop x8"
    assert (line.queued, line.started, line.sent, line.cold) == (10.0, 10.0, 10.7 + 0.1, 1)


def test_folding_can_be_turned_off() -> None:
    tasks = [task("crop", 10.0, tag=(i,)) for i in range(8)]
    assert len(rows(trace(*tasks), fold=100)) == 8


def test_stages_appear_in_the_order_in_which_they_began() -> None:
    lines = rows(trace(task("b", 10.0), task("a", 10.1), task("b", 10.2, tag=(1,))))
    assert [line.label for line in lines] == ["b", "b[1]", "a"]


def test_a_bar_shows_waiting_fetching_running_and_sending() -> None:
    one = TaskTrace("s", (), 1, 10.0, dispatched=10.2, started=10.4, ended=10.8, sent=10.9)
    (line,) = rows(trace(one))
    assert bar(line, 10.0, 11.0, 10).plain == "··╌╌████╴ "


def test_a_streaming_task_shows_from_its_first_item_on() -> None:
    one = TaskTrace("s", (), 1, 10.0, dispatched=10.0, started=10.0, first_output=10.5, ended=11.0, items=4)
    (line,) = rows(trace(one))
    assert bar(line, 10.0, 11.0, 10).plain == "█████▓▓▓▓▓"


def test_a_task_cut_off_in_the_middle_of_its_stream_shows_what_came_of_it() -> None:
    one = TaskTrace("s", (), 1, 10.0, dispatched=10.2, first_output=10.4, last_output=10.8, items=4)
    (line,) = rows(trace(one))
    assert bar(line, 10.0, 11.0, 10).plain == "··╌╌▓▓▓▓██"


def test_the_shortest_task_still_has_a_cell() -> None:
    (line,) = rows(trace(task("s", 10.5, length=0.0)))
    assert bar(line, 10.0, 11.0, 10).plain == "     █    "


def test_a_folded_bar_is_as_high_as_the_tasks_running_at_once() -> None:
    tasks = [task("s", 10.0, tag=(i,), length=1.0 if i < 4 else 0.5) for i in range(8)]
    (line,) = rows(trace(*tasks))
    assert bar(line, 10.0, 11.0, 10).plain == "█████▄▄▄▄▄"


def test_a_task_that_never_started_shows_as_waiting() -> None:
    (line,) = rows(trace(TaskTrace("s", (), 1, 10.5)))
    assert set(bar(line, 10.0, 11.0, 10).plain) <= {" ", "·"}
    assert "-" in drawn(trace(TaskTrace("s", (), 1, 10.5)))


def test_a_task_that_was_cut_off_in_its_container_shows_until_the_end() -> None:
    (line,) = rows(trace(TaskTrace("s", (), 1, 10.0, container=3, dispatched=10.5)))
    assert bar(line, 10.0, 11.0, 10).plain == "·····▒▒▒▒▒"
    assert "▒ cut off" in drawn(trace(TaskTrace("s", (), 1, 10.0, container=3, dispatched=10.5)))
    assert "▒" not in drawn(trace(task("s", 10.5)))


def test_times_are_milliseconds_since_the_arrival() -> None:
    text = drawn(trace(task("s", 10.25)))
    assert "250.0" in text
    assert "350.0" in text
    assert "1000.0 ms in all" in text


def test_batches_show_their_size_and_wait() -> None:
    text = drawn(trace(task("s", 10.0, batch=8, batch_wait_s=0.0123)))
    assert "batch 8, waited 12.3" in text


def test_phases_of_a_cold_start_are_told() -> None:
    told = {"warm-up": 0.04, "setup": 0.3, "model": 0.02, "import": 0.1, "weights": 0.2, "map": 0.01}  # as it comes
    times = {"dispatched": 10.6, "fetched": 10.6, "started": 10.6, "first_output": 10.65, "ended": 11.0, "sent": 11.0}
    traced = trace(TaskTrace("s", (), 1, 10.0, cold=True, start=told, **times))
    text = " ".join(drawn(traced).split())
    assert "cold (import 100, setup 300)" in text
    assert (
        "cold start of s: spawn 200, import 100, setup 300 (weights 200, map 10, model 20, warm-up 40), first output 50"
    ) in text
    (data,) = as_data(traced)["tasks"]
    assert list(data["start_ms"]) == ["import", "setup", "weights", "map", "model", "warm-up"]


def test_a_start_without_parts_has_no_line_of_its_own() -> None:
    text = drawn(trace(task("s", 10.0, cold=True, start={"setup": 0.0, "import": 0.1})))
    assert "cold (import 100, setup 0)" in " ".join(text.split())
    assert "cold start of" not in text


def test_cold_starts_and_errors_are_marked() -> None:
    text = drawn(trace(task("s", 10.0, cold=True, error="ValueError")))
    assert "cold" in text
    assert "ValueError" in text


def test_the_legend_tells_what_was_not_recorded() -> None:
    text = drawn(trace(task("s", 10.0), dropped=7, deadline=12.0))
    assert "7 more tasks not recorded" in text
    assert "deadline 2000.0 ms" in text


@pytest.mark.parametrize("width", [30, 36, 44, 60])
def test_names_and_bars_stay_whole_however_narrow_it_is(width: int) -> None:
    lines = drawn(trace(task("a_stage", 10.0, length=0.4), task("another", 10.4, length=0.6)), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[1:3]] == ["a_stage", "another"]
    assert all("…" not in line for line in lines)
    assert all("█" in line for line in lines[1:3])


def test_it_fits_a_narrow_terminal() -> None:
    text = drawn(trace(*(task("a_stage", 10.0, tag=(i,)) for i in range(3))), width=60)
    assert max(map(len, text.splitlines())) <= 60


def test_without_tasks_there_is_only_the_header() -> None:
    assert "1000.0 ms in all" in drawn(trace())


def test_a_running_invocation_ends_at_the_last_known_point() -> None:
    assert end_of(trace(task("s", 10.0, length=3.0), finished=0.0)) == 13.0
    assert "still running" in drawn(trace(task("s", 10.0), finished=0.0))


def test_as_data_leaves_out_points_that_were_never_reached() -> None:
    data = as_data(trace(TaskTrace("s", (1,), 1, 10.5)))
    assert data["duration_ms"] == 1000.0
    assert data["tasks"][0]["queued_ms"] == 500.0
    assert data["tasks"][0]["sent_ms"] is None
    assert data["tasks"][0]["tag"] == [1]
