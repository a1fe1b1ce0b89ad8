"""Any text and any conversation: a tokenizer read by ourselves says what that of `transformers` says."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dataflower.llm.text import TextStream
from dataflower.llm.tokenizer import PlainTokenizer, read_tokenizer
from functions import assets
from tests import tiny

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant' }}{% endif %}{{ tools | tojson }}"
)
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "2026", "  ", "\n", "👩‍👩‍👧"]),
    ),
    max_size=6,
).map("".join)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}),
    min_size=1,
    max_size=4,
)
TOOLS = st.none() | st.lists(st.dictionaries(TEXTS, TEXTS | st.floats(allow_nan=False) | st.none()), max_size=2)


@cache
def small() -> tuple[PlainTokenizer, Any]:
    with TemporaryDirectory() as folder:
        made = tiny.tokenizer()
        before, made.chat_template = made.chat_template, TEMPLATE
        try:
            made.save_pretrained(folder)
        finally:
            made.chat_template = before
        return _both(Path(folder))


@cache
def packaged() -> tuple[PlainTokenizer, Any]:
    return _both(Path(assets.find(assets.SMOLLM2)))


def _both(folder: Path) -> tuple[PlainTokenizer, Any]:
    ours = read_tokenizer(folder)
    assert ours is not None
    return ours, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def same(pair: tuple[PlainTokenizer, Any], text: str, messages: list[dict[str, str]], tools: Any, more: bool) -> None:
    """Tokens, texts of them and of each beginning, and the rendered conversation."""
    ours, theirs = pair
    ids = theirs(text)["input_ids"]
    assert ours(text)["input_ids"] == ids
    assert ours(text, add_special_tokens=False)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    streams = TextStream(ours, []), TextStream(theirs, [])
    for count, token in enumerate(ids, 1):
        assert ours.decode(ids[:count]) == theirs.decode(ids[:count])  # characters in the middle of their bytes, too
        assert streams[0].push(token) == streams[1].push(token)
    want = theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=more)
    assert ours.apply_chat_template(messages, tools=tools, add_generation_prompt=more) == want


@settings(max_examples=100, deadline=None)
@given(TEXTS, MESSAGES, TOOLS, st.booleans())
def test_a_small_tokenizer_says_what_transformers_says(
    text: str, messages: list[dict[str, str]], tools: Any, more: bool
) -> None:
    same(small(), text, messages, tools, more)


@pytest.mark.models
@settings(max_examples=150, deadline=None)
@given(TEXTS, MESSAGES, TOOLS, st.booleans())
def test_the_packaged_tokenizer_says_what_transformers_says(
    text: str, messages: list[dict[str, str]], tools: Any, more: bool
) -> None:
    same(packaged(), text, messages, tools, more)
