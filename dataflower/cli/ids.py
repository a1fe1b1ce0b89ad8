"""Ids of invocations, which people shorten."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dataflower.errors import NotFound

if TYPE_CHECKING:
    from dataflower.gateway.client import Client

T = TypeVar("T")

_LOOKED_THROUGH = 1000
_NAMED = 5


def by_id(client: Client, given: str, act: Callable[[str], T]) -> T:
    """What `act` makes of an invocation, given by its id or by the beginning of it, if only one recent one has it.

    Raises:
        NotFound: no invocation, or several.
    """
    try:
        return act(given)
    except NotFound:
        found = [record.id for record in client.invocations(limit=_LOOKED_THROUGH) if record.id.startswith(given)]
        if not given or not found:
            raise
    if len(found) > 1:
        named = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
        raise NotFound(f"{len(found)} invocations begin with {given!r}: {named}")
    return act(found[0])
