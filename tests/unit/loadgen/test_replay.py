"""Traces: the formats, the window, the speed, and what is said about bad ones."""

from __future__ import annotations

import math

import pytest

from dataflower.errors import InvalidArgument
from dataflower.loadgen.replay import Replay, TraceInvalid, Unit, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 3000, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}

{"timestamp": 1500, "input_length": 12, "output_length": 1, "hash_ids": []}
"""
FUNCTIONS = """HashOwner,HashApp,HashFunction,Trigger,1,2,3
a,b,c,queue,5,0,2
a,b,d,queue,1,0,1
"""


def test_dates_become_seconds_since_the_first() -> None:
    times = read_trace(AZURE, "t.csv", Replay()).times
    assert times.tolist() == pytest.approx([0, 4.314579, 4.541877], abs=1e-5)


def test_json_lines_with_milliseconds_out_of_order() -> None:
    assert read_trace(MOONCAKE, "t.jsonl", Replay(unit=Unit.MS)).times.tolist() == [0.0, 1.5, 3.0]


def test_speed_and_window() -> None:
    replay = Replay(unit=Unit.MS, window=(1.0, 2.0), speed=2.0)
    assert read_trace(MOONCAKE, "t.jsonl", replay).times.tolist() == [0.25]
    assert read_trace(MOONCAKE, "t.jsonl", Replay(unit=Unit.MS, window=(1.0, math.inf))).times.tolist() == [0.5, 2.0]


def test_columns_become_inputs() -> None:
    replay = Replay(inputs={"max_tokens": "GeneratedTokens"})
    assert [dict(given) for given in read_trace(AZURE, "t.csv", replay).inputs] == [
        {"max_tokens": 44},
        {"max_tokens": 109},
        {"max_tokens": 55},
    ]


def test_counts_a_minute_are_spread_over_it() -> None:
    times = read_trace(FUNCTIONS, "t.csv", Replay(), seed=1).times
    assert len(times) == 9
    first = times[times < 60]
    assert len(first) >= 6
    assert times.max() < 180
    assert times.tolist() == read_trace(FUNCTIONS, "t.csv", Replay(), seed=1).times.tolist()
    assert times.tolist() != read_trace(FUNCTIONS, "t.csv", Replay(), seed=2).times.tolist()


def test_a_named_column() -> None:
    assert read_trace("when,x\n5,1\n7,2\n", "t.csv", Replay(column="when")).times.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("text", "replay", "said"),
    [
        ("a,b\n1,2\n", Replay(), "t.csv:1:1: no column 'timestamp'.*--trace-column"),
        ("a,b\n1,2\n", Replay(column="c"), "t.csv:1:1: no column 'c' .the columns are a, b"),
        (AZURE, Replay(inputs={"n": "Tokens"}), "no column 'Tokens'"),
        ("x,time\n1,2\n2,soon\n", Replay(), "t.csv:3:2: no time: 'soon'"),
        ("time,n\n1,2\n2\n", Replay(inputs={"n": "n"}), "t.csv:3:1: 'n' is missing"),
        ("time\nnan\n", Replay(), "t.csv:2:1: no time: 'nan'"),
        ('{"time": 1}\n{oops\n', Replay(), "t.csv:2:1: not JSON"),
        ('{"time": 1}\n[2]\n', Replay(), "t.csv:2:1: not a JSON object"),
        ("time\n", Replay(), "the trace has no events"),
        ("f,1,2\nx,3,-4\n", Replay(), "a count is negative"),
        ("f,1,2\nx,3,many\n", Replay(), "t.csv:2:2: the counts are not all whole numbers"),
    ],
)
def test_bad_traces_are_refused_by_line(text: str, replay: Replay, said: str) -> None:
    with pytest.raises(TraceInvalid, match=said):
        read_trace(text, "t.csv", replay)


@pytest.mark.parametrize(
    ("replay", "said"),
    [
        (Replay(speed=0.0), "speed-up"),
        (Replay(window=(5.0, 5.0)), "holds no time"),
        (Replay(window=(100.0, 200.0)), "no event between 100 s and 200 s .3 in all"),
    ],
)
def test_replays_without_sense_are_refused(replay: Replay, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        read_trace(AZURE, "t.csv", replay)
