"""What the next tasks of a stage will read is fetched while its containers still compute (DataFlower's prefetching).

A task that waits for a place has all of its inputs. Its bytes may be on another host than the container that will run
it, or in memory that the container has not looked at yet. So a busy container is told of them: its data unit, and the
hosts', have them at hand when the task begins. Nothing is decided by that: the task may run elsewhere, or never.
"""

from __future__ import annotations

from dataflower.core.instance import Instance
from dataflower.wire import TensorRef, Value

MOST_FETCHED = 4
"""Tasks of a stage, or batches, whose inputs are fetched at a time: bytes of later ones would only slow theirs.

On another host, of each container: a task whose bytes are still on their way has a place and does nothing there. Its
inputs are sent at the rate of those who made them, each of whom has a rate of its own.
"""
FAR_BYTES = 8 << 20
"""But a task beyond those only if its inputs have no more than this: they take memory there."""


def worth_fetching(instance: Instance) -> tuple[TensorRef, ...]:
    """The memory that a waiting task will read, each piece once; nothing of what rides in messages."""
    values: list[Value] = []
    for number, _, is_stream in instance.program.data_inputs:
        if is_stream:
            values += [value for value, _ in instance.streams[number].entries]
            continue
        payload = instance.payloads[number]
        if isinstance(payload, tuple):
            values += payload
        elif payload is not None:
            values.append(payload)
    found: dict[tuple[int, int, int], TensorRef] = {}
    for value in values:
        if value.tensors or value.spilled is not None:
            for ref in value.tensors if value.spilled is None else (*value.tensors, value.spilled):
                if ref.nbytes:
                    found.setdefault((ref.arena, ref.offset, ref.nbytes), ref)
    return tuple(found.values()) if found else ()
