"""How long an answer may be: looked at before its data is copied into a message or written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import EncodeError

from dataflower.errors import ResourceExhausted


class AnswerTooLarge(ResourceExhausted):
    """What a workflow hands out is longer than one message may be; asking again would not help."""

    def __init__(self, takes: str, limit: int) -> None:
        super().__init__(
            f"the answer takes {takes}, the longest message allowed {limit}; "
            "stream the outputs, or raise `max_message_bytes` in the server's settings"
        )


def check_answer(value: Any, limit: int, *, as_json: bool = False) -> None:
    """Refuse a value that can't fit a message of `limit` bytes, without writing it.

    Args:
        value: anything that a port hands out.
        limit: in bytes.
        as_json: tensors become lists of numbers.

    Raises:
        AnswerTooLarge: texts, bytes and tensors alone are longer.
    """
    least = _payload(value, as_json)
    if least > limit:
        raise AnswerTooLarge(f"at least {least} bytes", limit)


def fitting(message: Any, limit: int) -> Any:
    """The message, if it may be sent.

    Raises:
        AnswerTooLarge: it is longer than `limit` bytes, or than any message can be.
    """
    try:
        size = message.ByteSize()
    except EncodeError:  # what protobuf says of 2 GiB and more
        raise AnswerTooLarge("2 GiB or more", limit) from None
    if size > limit:
        raise AnswerTooLarge(f"{size} bytes", limit)
    return message


def _payload(value: Any, as_json: bool) -> int:
    """Bytes that a value takes at least: a character one, a number of a list in JSON one and its comma."""
    match value:
        case str() | bytes() | bytearray():
            return len(value)
        case Mapping():
            return sum(_payload(item, as_json) for item in value.values())
        case list() | tuple():
            return sum(_payload(item, as_json) for item in value)
        case _ if as_json and hasattr(value, "shape"):
            return 2 * _elements(value.shape)
        case _:
            nbytes = getattr(value, "nbytes", 0)
            return nbytes if isinstance(nbytes, int) else 0


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= int(size)
    return count
