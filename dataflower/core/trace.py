"""Record points of an invocation: what `dataflower trace` draws."""

from __future__ import annotations

from msgspec import Struct

from dataflower.wire import Tag


class TaskTrace(Struct):
    """One attempt of one task. All times CLOCK_MONOTONIC seconds, 0 where the point was never reached.

    queued        its inputs were there (matching complete)
    dispatched    handed to a container
    fetched       the container had mapped and decoded its inputs
    started       user code began
    first_output  first item or value left the function
    ended         user code returned
    sent          the host had received everything
    last_output   the last item so far came to the host

    Of a task whose invocation ended before it did, `first_output` and `items`, too, are what had come to the host.
    """

    stage: str
    tag: Tag
    attempt: int
    queued: float
    container: int = 0
    dispatched: float = 0.0
    fetched: float = 0.0
    started: float = 0.0
    first_output: float = 0.0
    ended: float = 0.0
    sent: float = 0.0
    items: int = 0
    cold: bool = False
    """It had to wait for a container to start."""
    error: str = ""
    batch: int = 0
    """Tasks that its container was given together with it, itself included; 0 where the function takes no batches."""
    batch_wait_s: float = 0.0
    """How long it waited for others although a container was free."""
    start: dict[str, float] = {}
    """Of a cold one: phases of the start in seconds, `import` and `setup`, and the parts that `setup` told of."""
    last_output: float = 0.0

    def came(self, now: float) -> None:
        """An item of it came."""
        self.first_output = self.first_output or now
        self.last_output = now
        self.items += 1


class InvocationTrace(Struct):
    """All tasks of an invocation in the order of queueing (at most `LIMIT`; `dropped` counts the rest)."""

    invocation: str
    key: str
    arrived: float
    finished: float = 0.0
    first_output: float = 0.0
    deadline: float = 0.0
    tasks: list[TaskTrace] = []
    dropped: int = 0


LIMIT = 4096
"""Tasks recorded per invocation."""
