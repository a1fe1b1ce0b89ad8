"""A generation as its caller holds it: an iterator over outputs, made on the runner's thread."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

from msgspec import structs

from dataflower.errors import DataflowerError
from dataflower.llm.output import TokenOutput
from dataflower.llm.text import TextStream

Item = TokenOutput | DataflowerError
S = TypeVar("S", bound="_Tokens")


class Sink(Protocol):
    """Where outputs of a generation go."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """On which `put` must be called; None = on any thread."""
        ...

    def put(self, item: Item) -> None:
        """An output, or what the generation failed with. Does not block."""
        ...


class _Tokens:
    """What both kinds share: the generation is let go of, at the latest when nobody holds the iterator."""

    def __init__(self) -> None:
        self._cancel: Callable[[], None] | None = None
        self._text: TextStream | None = None
        self._over = False

    def bind(self, cancel: Callable[[], None], text: TextStream | None) -> None:
        """Called by the runner: how to cancel, and what makes text of tokens, if outputs come without."""
        self._cancel, self._text = cancel, text

    def close(self) -> None:
        """Cancel the generation unless it is over: its blocks are free before the next step. May be called twice."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None and not self._over:
            cancel()
        self._over = True

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _look(self, item: Item) -> TokenOutput:
        if isinstance(item, DataflowerError):
            self._over = True
            raise item
        self._over = item.finish is not None
        if self._text is None or item.token is None:
            return item
        return structs.replace(item, text=self._text.push(item.token))


class AsyncTokens(_Tokens):
    """Asynchronous iterator; one reader. Over after the output that has `finish`. Cancelling the reader cancels it."""

    def __init__(self) -> None:
        """On a running loop."""
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.feeder: asyncio.Task[None] | None = None
        """Reads the prompt, if that is a stream."""

    def close(self) -> None:
        """See `_Tokens.close`. On the loop."""
        super().close()
        if self.feeder is not None and not self.loop.is_closed():
            self.feeder.cancel()

    def put(self, item: Item) -> None:
        """See `Sink`."""
        self._items.append(item)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __aiter__(self) -> AsyncTokens:
        return self

    async def __anext__(self) -> TokenOutput:
        if self._over:
            raise StopAsyncIteration
        try:
            while not self._items:
                self._waiter = self.loop.create_future()
                await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        return self._look(self._items.popleft())


class SyncTokens(_Tokens):
    """Iterator; it blocks. It is over after the output that has `finish`."""

    loop = None

    def __init__(self) -> None:
        super().__init__()
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def put(self, item: Item) -> None:
        """See `Sink`."""
        self._items.put(item)

    def __iter__(self) -> SyncTokens:
        return self

    def __next__(self) -> TokenOutput:
        if self._over:
            raise StopIteration
        return self._look(self._items.get())
