"""What the programs share that call a server with tritonclient."""

from __future__ import annotations

from collections.abc import Callable

from tritonclient.utils import InferenceServerException


def refusal(call: Callable[..., object], *args: object, **kwargs: object) -> str:
    """Status of a call that must fail."""
    try:
        call(*args, **kwargs)
    except InferenceServerException as error:
        return str(error.status())
    return "none"
