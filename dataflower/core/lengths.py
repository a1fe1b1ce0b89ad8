"""How long a request for a language model is, before any model has seen it: tokens of its prompt, and of its answer.

Where a request has the form of a chat stage (docs/llm.md, "The chat stage"), its values tell. The core has no
tokenizer, so a text counts by its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack

from dataflower.core.plan import Length
from dataflower.core.values import look
from dataflower.wire import Value

BYTES_A_TOKEN = 4.0
"""Of a text; vocabularies of tens of thousands of pieces have about as many."""
MESSAGE_TOKENS = 4
"""What a chat template writes round a message."""


def length_of(value: Value) -> Length | None:
    """None: it is no such request, which says nothing of its length."""
    if value.spilled is not None:
        return Length(value.spilled.nbytes / BYTES_A_TOKEN)
    try:
        request = look(value)
    except (ValueError, msgpack.UnpackException):
        return None
    if not isinstance(request, dict):
        return None
    prompt = _prompt(request)
    if prompt is None:
        return None
    said = [n for name in ("max_tokens", "max_completion_tokens") if (n := _count(request, name)) is not None]
    most = float(min(said)) if said else math.inf
    least = most if request.get("ignore_eos") is True and most < math.inf else float(_count(request, "min_tokens") or 0)
    return Length(prompt, min(least, most), most)


def _prompt(request: Mapping[Any, Any]) -> float | None:
    prompt, messages = request.get("prompt"), request.get("messages")
    if isinstance(prompt, str):
        return _text(prompt)
    if isinstance(prompt, list):
        return float(len(prompt))
    if not isinstance(messages, list):
        return None
    return sum(MESSAGE_TOKENS + _content(m.get("content")) for m in messages if isinstance(m, dict))


def _content(content: Any) -> float:
    if isinstance(content, str):
        return _text(content)
    parts = content if isinstance(content, list) else ()
    return sum([_text(part["text"]) for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)])


def _text(text: str) -> float:
    return len(text.encode("utf-8", "surrogatepass")) / BYTES_A_TOKEN


def _count(request: Mapping[Any, Any], name: str) -> int | None:
    number = request.get(name)
    return number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else None
