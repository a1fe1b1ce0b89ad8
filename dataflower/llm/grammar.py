"""Answers that follow a JSON schema: which tokens may come next (by llguidance)."""

from __future__ import annotations

import threading
from copy import copy
from typing import Any

import numpy as np
import torch

from dataflower.llm.errors import SchemaInvalid

STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as models write it; free white space would let a small model write nothing else."""


class Grammars:
    """Compiles schemas for one tokenizer. Thread-safe; the tokenizer is read when first needed."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """`tokenizer`: a `PlainTokenizer` or a fast one of `transformers`; `vocabulary`: logits of a token."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock = threading.Lock()
        self._made: Any = None

    def compile(self, schema: str) -> Matcher:
        """The state before the first token. Takes milliseconds, and more for large schemas. Raises SchemaInvalid."""
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=STYLE)
            matcher = LLMatcher(self._tables(), grammar)
        except ValueError as error:
            raise SchemaInvalid(f"the JSON schema can't be followed: {error}") from None
        if matcher.is_error():
            raise SchemaInvalid(f"the JSON schema can't be followed: {matcher.get_error()}")
        return Matcher(matcher, self._vocabulary)

    def _tables(self) -> Any:
        from llguidance import LLTokenizer

        with self._lock:
            if self._made is None:
                backend = copy(self._tokenizer.backend_tokenizer)
                backend.no_padding()
                backend.no_truncation()
                ends = self._tokenizer.eos_token_id
                self._made = LLTokenizer(backend.to_str(), n_vocab=self._vocabulary, eos_token=ends)
            return self._made


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> torch.Tensor:
        """(vocabulary,) which tokens may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return torch.from_numpy(np.unpackbits(bits, count=self._vocabulary, bitorder="little")).bool()

    def take(self, token: int) -> None:
        """A token was chosen. Raises SchemaInvalid if the grammar can't go on (a limit of the library)."""
        if not self._matcher.consume_token(token) or self._matcher.is_error():
            raise SchemaInvalid(f"the JSON schema can't be followed further: {self._matcher.get_error()}")
