"""From tokens to text as it grows: whole characters, and nothing that may still turn out to be a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

UNFINISHED = "\ufffd"
"""What decoders give for bytes that are no whole character."""
CONTEXT = 6
"""Tokens of the prompt that tell a tokenizer how the first word continues it."""


class TextStream:
    """The text of one sequence."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        """`tokenizer`: a `PlainTokenizer` or a fast one of `transformers`."""
        from tokenizers.decoders import DecodeStream

        self._backend = tokenizer.backend_tokenizer
        before = list(prompt[-CONTEXT:])
        if UNFINISHED in self._backend.decode(before):  # the decoder would take parts of the prompt for new text
            before = []
        self._decoder = DecodeStream(ids=before, skip_special_tokens=True)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Text that is certain now. Once `stopped_by` is set nothing more comes."""
        if self.stopped_by is not None:
            return ""
        piece: str = self._decoder.step(self._backend, token) or ""
        if not self._stops:
            return piece
        text = self._held + piece
        at, self.stopped_by = earliest(text, self._stops)
        if self.stopped_by is not None:
            self._held = ""
            return text[:at]
        keep = pending(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back: the sequence ended otherwise."""
        held, self._held = self._held, ""
        return held


def earliest(text: str, stops: Sequence[str]) -> tuple[int, str | None]:
    """Where the first of the stop texts begins, and which it is."""
    found = [(at, -len(stop), stop) for stop in stops if (at := text.find(stop)) >= 0]
    return (min(found)[0], min(found)[2]) if found else (len(text), None)


def pending(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of the text that some stop text begins with."""
    longest = min(len(text), max(len(stop) for stop in stops) - 1)
    return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0)


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes that a token stands for; it need not be whole characters."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None or token in tokenizer.all_special_ids:
        return (piece or "").encode()
    if type(tokenizer.backend_tokenizer.decoder).__name__ == "ByteLevel":
        letters = _letters()
        if all(letter in letters for letter in piece):
            return bytes(letters[letter] for letter in piece)
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # how others write a single byte
        return bytes([int(piece[3:5], 16)])
    return str(tokenizer.decode([token])).encode()


@cache
def _letters() -> dict[str, int]:
    """Byte-level BPE writes each byte as a letter: printable Latin-1 as itself, the others from U+0100 on, in order."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
