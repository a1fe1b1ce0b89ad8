"""What one sees while a workflow runs."""

from __future__ import annotations

import io

from rich.console import Console

from dataflower.cli.screen import Screen, stage_table
from dataflower.host.api import OutputItem, StageStatus


def piped(*items: OutputItem) -> str:
    out = io.StringIO()
    with Screen(None, out) as screen:
        for item in items:
            screen.item(item)
    return out.getvalue()


def watched(*items: OutputItem, width: int = 40) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    with Screen(console, None) as screen:
        for item in items:
            screen.item(item)
    return out.getvalue()


def test_tokens_are_joined_to_a_text() -> None:
    assert piped(*(OutputItem("answer", i, t) for i, t in enumerate(["A ", "red ", "car"]))) == "answer: A red car\n"


def test_another_stream_begins_a_line_of_its_own() -> None:
    text = piped(
        OutputItem("a", 0, "x"), OutputItem("b", 0, "y"), OutputItem("b", 1, {"n": 1}), OutputItem("a", 1, "z")
    )
    assert text == 'a: x\nb: y\nb[1]: {"n": 1}\na: z\n'


def test_line_breaks_in_a_text_stay() -> None:
    assert piped(OutputItem("a", 0, "one\ntw"), OutputItem("a", 1, "o\n")) == "a: one\ntwo\n"


def test_above_the_live_table_long_lines_are_broken_at_words() -> None:
    words = [f"word{i} " for i in range(12)]
    lines = watched(*(OutputItem("a", i, w) for i, w in enumerate(words))).splitlines()
    text = [line for line in lines if "word" in line]
    assert max(map(len, text)) < 40
    assert " ".join(text).split()[1:] == [w.strip() for w in words]


def test_a_word_longer_than_the_terminal_is_cut() -> None:
    text = watched(OutputItem("a", 0, "x" * 100))
    assert text.count("x") == 100


def test_idle_stages_are_left_out_of_the_table() -> None:
    console = Console(width=80)
    stages = [StageStatus("decode", 0, 0, 1, 0, 3), StageStatus("unused", 0, 0, 0, 0)]
    with console.capture() as capture:
        console.print(stage_table(stages))
    assert "decode" in capture.get()
    assert "unused" not in capture.get()
