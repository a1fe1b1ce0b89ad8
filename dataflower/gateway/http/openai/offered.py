"""Which parameters of OpenAI's API are offered: what is not, and would change an answer, is refused by its name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from dataflower.gateway.http.status import BadField

DOOR = frozenset(("model", "stream", "stream_options", "n"))
"""What the door itself sees to."""
SILENT = frozenset(
    (
        "user",
        "safety_identifier",
        "metadata",
        "store",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "reasoning",
        "reasoning_effort",
    )
)
"""What changes no answer: who asks, what a provider keeps of it or charges for it, and how hard a model thinks that
does: these don't, and `usage` says so (clients that know only models of the other kind always ask).
"""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "continue_final_message": (False,),
    "return_tokens_as_token_ids": (False,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none",),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "audio": (),
    "web_search_options": (),
}
"""What is not offered, but for these values: they ask for what is done anyway."""
_HINTS = {
    "functions": ": use `tools` instead",
    "function_call": ": use `tool_choice` instead",
    "suffix": ": texts are continued, not filled in",
    "prompt_logprobs": ": use `echo` with `logprobs`",
    "repetition_penalty": ": use `frequency_penalty` or `presence_penalty`",
    "min_p": ": use `top_p` or `top_k`",
}


def passed(body: Mapping[str, Any], known: frozenset[str], own: frozenset[str] = DOOR) -> dict[str, Any]:
    """What of a body goes to the stage; null is as if it were not there.

    Args:
        body: as it came.
        known: parameters that the stage knows.
        own: those that the door sees to.

    Raises:
        BadField: it asks for what is not offered, or for what nobody knows.
    """
    found: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in own or name in SILENT:
            continue
        if name in known:
            found[name] = value
        elif name not in NEUTRAL:
            near = difflib.get_close_matches(name, [*known, *own], 1)
            hint = f": is `{near[0]}` meant?" if near else ""
            raise BadField(f"`{name}` is no parameter of this endpoint{hint}", name, reason="unknown_parameter")
        elif not any(type(value) is type(other) and value == other for other in _alike(NEUTRAL[name])):
            raise BadField(f"`{name}` is not offered{_HINTS.get(name, '')}", name, reason="unsupported_parameter")
    return found


def _alike(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whole numbers as fractions, too: JSON does not tell 1 from 1.0."""
    return (*values, *(float(value) for value in values if type(value) is int))
