"""What a container is told about the inputs of its tasks: all that is there when they begin, streams as they grow."""

from __future__ import annotations

from collections.abc import Iterator

from dataflower import wire
from dataflower.core.events import Slot
from dataflower.core.instance import Instance, StreamInput
from dataflower.core.payload import refs_of


def at_start(instance: Instance) -> tuple[wire.TaskInput, ...]:
    """The inputs of a task that is about to run; its streams begin where they were kept from."""
    inputs: list[wire.TaskInput] = []
    for number, name, is_stream in instance.program.data_inputs:
        if is_stream:
            stream = instance.streams[number]
            stream.sent = stream.taken = stream.base
            values = stream.unsent()
            stream.reported = stream.ended
            inputs.append(wire.Opened(name, values, stream.ended))
            continue
        payload = instance.payloads[number]
        assert payload is not None
        inputs.append(wire.Gathered(name, payload) if isinstance(payload, tuple) else wire.Single(name, payload))
    return tuple(inputs)


def news(instance: Instance, lost: set[Slot]) -> Iterator[wire.Feed | wire.FeedEnd]:
    """What came for the streams of a running task since it was last told; nothing is said twice.

    Items that refer to `lost` slots, and all that come after them, are held back.
    """
    for number, name, is_stream in instance.program.data_inputs:
        if not is_stream:
            continue
        stream = instance.streams[number]
        values = _present(stream, lost) if lost else stream.unsent()
        if values:
            yield wire.Feed(instance.task, name, values)
        if stream.ended and not stream.reported and stream.sent == stream.length:
            stream.reported = True
            yield wire.FeedEnd(instance.task, name)


def _present(stream: StreamInput, lost: set[Slot]) -> tuple[wire.Value, ...]:
    found: list[wire.Value] = []
    for value in stream.untold():
        if any((ref.arena, ref.slot) in lost for ref in refs_of(value)):
            break
        found.append(value)
    stream.sent += len(found)
    return tuple(found)
