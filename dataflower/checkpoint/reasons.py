"""What a client is told of an error in the store."""

from __future__ import annotations

from dataflower.errors import Code, DataflowerError


def code_of(error: Exception) -> Code:
    """Its own code; of foreign ones UNAVAILABLE if files, networks or devices failed, else INTERNAL."""
    if isinstance(error, DataflowerError):
        return error.code
    return Code.UNAVAILABLE if isinstance(error, OSError) else Code.INTERNAL


def text_of(error: Exception) -> str:
    """In words."""
    return error.message if isinstance(error, DataflowerError) else f"{type(error).__name__}: {error}"
