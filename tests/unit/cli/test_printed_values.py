"""Results as text and as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dataflower.cli.values import plain, text


def test_nested_values_become_plain() -> None:
    value = {"a": [np.float32(1.5), (1, None)], "b": b"xy", "c": np.arange(2)}
    made = plain(value)
    assert made["a"] == [1.5, [1, None]]
    assert made["b"] == {"nbytes": 2, "base64": "eHk="}
    assert made["c"] == {"dtype": "int64", "shape": [2], "data": [0, 1]}
    assert json.loads(json.dumps(made)) == made


def test_what_is_no_number_is_valid_json_all_the_same() -> None:
    inf = float("inf")
    value = {"a": [float("nan"), inf, -inf, np.float32("nan")], "t": np.array([1.0, np.nan])}
    made = plain(value)
    assert made["a"] == [None, "Infinity", "-Infinity", None]
    assert made["t"]["data"] == [1.0, None]
    json.dumps(made, allow_nan=False)


def test_large_data_is_left_out() -> None:
    assert plain(np.zeros((64, 64), np.uint8)) == {"dtype": "uint8", "shape": [64, 64]}
    assert plain(b"x" * 5000) == {"nbytes": 5000}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two\nlines", "two\nlines"),
        (None, "null"),
        (True, "true"),
        (b"abc", "<3 bytes>"),
        ({"a": 1}, '{"a": 1}'),
        (np.zeros((480, 640, 3), np.uint8), "<uint8[480, 640, 3]>"),
        (np.array([1, 2]), "int64[2] [1 2]"),
        (np.float32(2.0), "2.0"),
    ],
)
def test_text_for_people(value: object, shown: str) -> None:
    assert text(value) == shown


def test_long_structures_get_lines_and_long_lists_are_cut_short() -> None:
    shown = text({"total": 50, "records": [{"index": i, "label": f"a label of number {i}"} for i in range(50)]})
    total, records = shown.splitlines()
    assert total == "total: 50"
    assert records.startswith('records: [{"index": 0, "label": "a label of number 0"}, ')
    assert records.endswith(" ... (50 items)")
    assert len(records) <= 100
    assert text([{"label": "x" * 20}] * 50).splitlines()[-1] == "... +42"


def test_of_a_text_nobody_reads_on_a_terminal_the_beginning_is_shown() -> None:
    assert text("x" * 100_000) == "x" * 100_000
    assert text("x" * 70_000_000) == "x" * 100_000 + " ... (70,000,000 characters; -o json prints them all)"
