"""Counting words, and a few things to do with text between two models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from itertools import islice
from typing import Any

from dataflower.spec.function import Json, Stream, Text, function
from functions import assets

WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


@function(outputs={"chunk": Stream(Text())})
def split(text: str, lines: int = 500) -> Iterator[str]:
    """A text in pieces of so many lines: the text itself, or the name of a file or of a packaged one."""
    with (
        StringIO(text)
        if "\n" in text
        else open(assets.find_file(text, assets.TEXTS, ".txt"), encoding="utf-8") as source
    ):
        while piece := "".join(islice(source, lines)):
            yield piece


@function(outputs={"counts": Json()})
def count(chunk: str) -> dict[str, int]:
    """How often each word occurs."""
    return dict(Counter(WORD.findall(chunk.lower())))


@function(outputs={"pair": Stream(Json())})
def shuffle(counts: Stream[Mapping[str, int]]) -> Iterator[Mapping[str, Any]]:
    """The counts of each chunk, as they come, cut by first letters: a `{"key", "value"}` for each letter."""
    for chunk in counts:
        letters: dict[str, dict[str, int]] = {}
        for word, times in chunk.items():
            letters.setdefault(word[0], {})[word] = times
        for letter, part in letters.items():
            yield {"key": letter, "value": part}


@function(outputs={"counts": Json()})
def add(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


@function(outputs={"top": Json(), "words": Json(), "distinct": Json()})
def rank(counts: Sequence[Mapping[str, int]], top: int = 20) -> Mapping[str, Any]:
    """The most frequent words (equal ones by the alphabet), how many words there are, and how many different ones."""
    total = add(counts)
    ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return {"top": dict(ordered[:top]), "words": sum(total.values()), "distinct": len(total)}


@function(outputs={"text": Text()})
def fill(template: str, text: str) -> str:
    """The template with {text} replaced."""
    return template.format(text=text)
