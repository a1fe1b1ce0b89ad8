"""Runs a user's function and notes what it was given: the inputs of its first tasks, and the files that it reads.

`dataflower profile` puts this in the place of every function of a workflow for a few real runs. What is noted lies in
a folder: `NNNNN.task`, a MessagePack map from input to its value (a stream is the list of its items) in the form of
`host.values`, and `files.json`, the regular files that were looked at and are no code.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from dataflower.channel.tensor import encode
from dataflower.channel.torches import to_torch
from dataflower.container import target
from dataflower.container.target import Target
from dataflower.spec.context import Context

_CODE = (".py", ".pyc", ".pyi", ".so", ".pth")
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib", "/bin/", "/var/", "/memfd:", "/run/")


class Recorder:
    """Takes the params of a stage as it is, and the place where to note things.

    Attributes:
        keep: tasks to note, by all recorders of the stage together (as far as they see each other's files).
        limit_bytes: a task whose inputs are larger is not noted.
    """

    _target: Target

    def setup(
        self,
        function: str,
        params: Mapping[str, Any],
        folder: str,
        *,
        keep: int = 8,
        limit_bytes: int = 1 << 28,
        batch: bool = False,
        streams: Sequence[str] = (),
    ) -> None:
        """Load the user's function. Raises whatever that raises."""
        self._folder, self._keep, self._limit = Path(folder), keep, limit_bytes
        self._batch, self._streams = batch, frozenset(streams)
        self._files: set[str] = set()
        self._watching = True
        _watch(self)
        self._target = target.build(target.find(function), params)
        self._files.update(_mapped())
        self._note_files()
        runner = find_runner(self._target.instance)
        if runner is not None:
            runner.watch(_Answers(self._folder / f"{uuid.uuid4().hex}.answers.json"))

    def __call__(self, context: Context, **inputs: Any) -> Any:
        """Call the user's function with what came, once it is noted."""
        given = dict(inputs)
        if self._wants_more():
            given = self._note(given)
        wanted = {name: self._shaped(name, value) for name, value in given.items()}
        if self._batch:
            wanted = {name: [value] for name, value in wanted.items()}
        own = {**self._target.constants, **wanted}
        if self._target.context is not None:
            own[self._target.context] = [context] if self._batch else context
        result = self._target.invoke(own)
        return _first(result) if self._batch else result

    def _shaped(self, name: str, value: Any) -> Any:
        if name not in self._target.torch:
            return value
        if name in self._streams:
            return _Tap(value, _as_torch)
        return [_as_torch(item) for item in value] if isinstance(value, list) else _as_torch(value)

    def _wants_more(self) -> bool:
        return sum(1 for _ in self._folder.glob("*.task")) < self._keep

    def _note(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Note a task; the inputs to go on with, whose streams are noted as they are read."""
        values: dict[str, bytes | list[bytes]] = {}
        size = 0
        for name, value in inputs.items():
            if name not in self._streams:
                values[name] = encode(value, arena=None, views=None).body
                size += len(values[name])
        streams = [name for name in inputs if name in self._streams]
        if size > self._limit:
            return inputs
        if not streams:
            self._write(values)
            return inputs
        kept = {name: _Kept(self._limit - size) for name in streams}
        ended: set[str] = set()

        def end(name: str) -> None:
            ended.add(name)
            if ended == kept.keys() and all(one.fits for one in kept.values()):
                self._write({**values, **{name: one.items for name, one in kept.items()}})

        taps = {name: _Tap(inputs[name], one.add, partial(end, name)) for name, one in kept.items()}
        return {**inputs, **taps}

    def _write(self, values: Mapping[str, bytes | list[bytes]]) -> None:
        """One file, complete or not there."""
        if self._watching:
            self._watching = False
            self._files.update(_mapped())
            self._note_files()
        # Not by process number: in its sandbox every container is process 2.
        name = f"{sum(1 for _ in self._folder.glob('*.task')):05}-{uuid.uuid4().hex}"
        made = self._folder / f"{name}.making"
        made.write_bytes(msgspec.msgpack.encode(values))
        made.rename(self._folder / f"{name}.task")

    def _note_files(self) -> None:
        (self._folder / f"{uuid.uuid4().hex}.files.json").write_text(json.dumps(sorted(self._files)))

    def saw(self, path: object) -> None:
        """Somebody looks at a path: note it if it is a file of data."""
        if self._watching and isinstance(path, str | bytes | os.PathLike):
            name = os.path.realpath(os.fsdecode(path))
            if is_data(name) and not name.startswith(str(self._folder)) and os.path.isfile(name):
                self._files.add(name)

    def close(self) -> None:
        """Let the user's function put itself away."""
        self._target.close()


RUNNER = "dataflower.llm.runner"
"""Where a runner's class lives. It is known by that name: what runs here may have nothing to do with models."""


def find_runner(instance: Any) -> Any:
    """The runner of language models that a function keeps as one of its attributes; None if it has none."""
    held = vars(instance).values() if hasattr(instance, "__dict__") else ()
    return next((one for one in held if any(kind.__module__ == RUNNER for kind in type(one).__mro__)), None)


class _Answers:
    """Notes tokens of prompts and answers, one pair for each answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pairs: list[tuple[int, int]] = []
        self._write()

    def stepped(self, decoding: int, prompt_tokens: int) -> None:
        """See `Watcher`."""

    def finished(self, usage: Any) -> None:
        """See `Watcher`."""
        self._pairs.append((usage.prompt_tokens, usage.completion_tokens))
        self._write()

    def _write(self) -> None:
        made = self._path.with_suffix(".making")
        made.write_text(json.dumps(self._pairs))
        made.replace(self._path)


def is_data(name: str) -> bool:
    """Whether a path may be weights or other data: not code, not the system's, not part of an installed package."""
    if name.endswith(_CODE) or name.startswith(_SYSTEM):
        return False
    places = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(name.startswith(place) for place in places if place)


def _watch(recorder: Recorder) -> None:
    """See what Python opens here, and what it looks for: libraries in other languages open files by themselves."""
    busy = False
    real = os.stat

    def saw(path: object) -> None:
        nonlocal busy
        if not busy:
            busy = True
            try:
                recorder.saw(path)
            finally:
                busy = False

    def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        found = real(path, *args, **kwargs)
        saw(path)
        return found

    sys.addaudithook(lambda event, args: saw(args[0]) if event == "open" else None)
    os.stat = stat  # for the life of this container, which exists to be watched


def _mapped() -> set[str]:
    """Files of data that are mapped right now."""
    names = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if " /" in line}
    return {name for name in names if is_data(name) and os.path.isfile(name)}


def _as_torch(value: Any) -> Any:
    return to_torch(value) if hasattr(value, "__array_interface__") else value


def _first(result: Any) -> Any:
    """Of a batch of one; a coroutine is awaited first."""
    if hasattr(result, "__await__"):

        async def later() -> Any:
            return (await result)[0]

        return later()
    found = result[0]
    if isinstance(found, Exception):
        raise found
    return found


class _Tap:
    """A stream whose items go through `step` as they are read; `ended` is called once at its end."""

    def __init__(self, stream: Any, step: Callable[[Any], Any], ended: Callable[[], None] | None = None) -> None:
        self._stream, self._step, self._ended = stream, step, ended

    def __iter__(self) -> _Tap:
        return self

    def __next__(self) -> Any:
        try:
            item = next(self._stream)
        except StopIteration:
            self._end()
            raise
        return self._step(item)

    def __aiter__(self) -> _Tap:
        return self

    async def __anext__(self) -> Any:
        try:
            item = await anext(self._stream)
        except StopAsyncIteration:
            self._end()
            raise
        return self._step(item)

    def _end(self) -> None:
        if self._ended is not None:
            self._ended()
            self._ended = None


class _Kept:
    """Items of a stream, as long as they stay within the limit."""

    def __init__(self, limit: int) -> None:
        self.items: list[bytes] = []
        self._left = limit

    def add(self, item: Any) -> Any:
        """Keep an item and hand it on."""
        if self._left >= 0:
            self.items.append(encode(item, arena=None, views=None).body)
            self._left -= len(self.items[-1])
        return item

    @property
    def fits(self) -> bool:
        """Whether nothing was left out."""
        return self._left >= 0
