"""Real zygotes and containers, driven message by message: the test plays the host.

Blocking calls have no timeouts of their own; tests run under one.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from dataflower import wire
from dataflower.channel import tensor
from dataflower.channel.arena import Arena
from dataflower.channel.board import Board
from dataflower.channel.link import Link
from dataflower.channel.views import Views
from dataflower.wire import InputPort, OutputPort, Value

M = TypeVar("M", bound=msgspec.Struct)

OUT = (OutputPort("out"),)
STREAM = (OutputPort("out", stream=True),)


class ZygoteDriver:
    """A zygote process and what it says. Leaving it ends the zygote and its containers."""

    def __init__(
        self, preload: Sequence[str] = (), environ: Mapping[str, str] | None = None, options: Sequence[str] = ()
    ) -> None:
        """`options`: further arguments of the zygote, such as `--isolate`."""
        self.link, theirs = Link.pair()
        command = [sys.executable, "-m", "dataflower.container.zygote", "--fd", str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*command, "--preload", ",".join(preload), *options],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._numbers = itertools.count(1)
        self._said: list[Any] = []
        self.containers: list[ContainerDriver] = []
        self.ready = self.next(wire.ZygoteReady)

    def next(self, kind: type[M]) -> M:
        """The next message of this kind; others are kept for later."""
        for message in self._said:
            if type(message) is kind:
                self._said.remove(message)
                return message
        while True:
            message = wire.decode_from_zygote(self.link.receive()[0])
            if type(message) is kind:
                return message
            self._said.append(message)

    def exited(self, container: ContainerDriver) -> int:
        """Wait for a container's end; gives its exit status."""
        while True:
            message = self.next(wire.Exited)
            if message.container == container.number:
                return message.status
            self._said.append(message)

    def fork(
        self,
        function: str,
        log: Path,
        *,
        params: Mapping[str, Any] | None = None,
        outputs: tuple[OutputPort, ...] = OUT,
        inputs: tuple[InputPort, ...] = (),
        code_path: tuple[str, ...] = (),
        stage: str = "stage",
        **options: Any,
    ) -> ContainerDriver:
        """Ask for a container (not waiting for its `Hello`). `options`: further fields of `wire.Fork`."""
        inbox, their_inbox = Link.pair()
        tasks, their_tasks = Link.pair()
        control, their_control = Link.pair()
        number = next(self._numbers)
        with log.open("wb") as file:
            order = wire.Fork(
                container=number,
                function=function,
                stage=stage,
                workflow="test",
                params=msgspec.msgpack.encode(dict(params or {})),
                outputs=outputs,
                inputs=inputs,
                code_path=code_path,
                **options,
            )
            theirs = (their_inbox, their_tasks, their_control)
            board = Board(order.concurrency)
            descriptors = (*(link.fileno() for link in theirs), file.fileno(), board.descriptor)
            self.link.send(wire.encode(order), descriptors)
        for link in theirs:
            link.close()
        pid = self.next(wire.Forked).pid
        container = ContainerDriver(number, pid, (inbox, tasks, control), log, board)
        self.containers.append(container)
        return container

    def start(self, function: str, log: Path, **options: Any) -> ContainerDriver:
        """Fork a container and wait until it is ready."""
        container = self.fork(function, log, **options)
        container.hello = container.next(wire.Hello)
        return container

    def close(self) -> None:
        """End everything. Idempotent."""
        for container in self.containers:
            container.close()
        self.link.close()
        if self.process.poll() is None:
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ContainerDriver:
    """The host's ends of one container's sockets."""

    def __init__(self, number: int, pid: int, links: tuple[Link, Link, Link], log: Path, board: Board) -> None:
        self.board = board
        self.number = number
        self.pid = pid
        self.inbox, self.tasks, self.control = links
        self.hello: wire.Hello | None = None
        self.views = Views(keep_descriptors=True)
        """The container's arenas, as the host has them."""
        self.arena = Arena(0xFFFF, cap_bytes=1 << 40, announce=self._announce)
        """A host's arena, for inputs; attached on the task socket."""
        self._log = log
        self._said: list[Any] = []
        self._tasks = itertools.count(1)

    def run(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        streams: Mapping[str, tuple[Sequence[Any], bool]] | None = None,
        raw: Mapping[str, Value | tuple[Value, ...]] | None = None,
        credit: tuple[int, int] = (1 << 30, 1 << 50),
        **options: Any,
    ) -> int:
        """Send a RunTask and give its number. `streams`: first items and whether that is all; `raw`: encoded values."""
        number = next(self._tasks)
        entries: list[wire.TaskInput] = [wire.Single(n, self.encode(v)) for n, v in (inputs or {}).items()]
        for name, (items, ended) in (streams or {}).items():
            entries.append(wire.Opened(name, tuple(self.encode(item) for item in items), ended))
        for name, value in (raw or {}).items():
            entries.append(wire.Gathered(name, value) if isinstance(value, tuple) else wire.Single(name, value))
        message = wire.RunTask(number, tuple(entries), credit_items=credit[0], credit_bytes=credit[1], **options)
        self.inbox.send(wire.encode(message))
        return number

    def tell(self, message: wire.ToContainer, fds: Sequence[int] = ()) -> None:
        """Send on the control socket."""
        self.control.send(wire.encode(message), fds)

    def receive(self) -> Any:
        """The next message of any kind but ArenaMade, which is dealt with."""
        if self._said:
            return self._said.pop(0)
        while True:
            payload, fds = self.tasks.receive()
            message = wire.decode_from_container(payload)
            if not isinstance(message, wire.ArenaMade):
                return message
            self.views.attach(message.arena, message.nbytes, fds[0])

    def next(self, kind: type[M], *, passing: type[wire.FromContainer] | None = None) -> M:
        """The next message, which must be of this kind; those of the kind `passing` may come before it."""
        message = self.receive()
        while passing is not None and type(message) is passing:
            message = self.receive()
        assert type(message) is kind, message
        return message

    def result(self, inputs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run a task with one output to its end; gives the decoded value of `out`."""
        self.run(inputs, **options)
        return self.decode(self.next(wire.TaskDone).outputs["out"])

    def encode(self, value: Any) -> Value:
        """A value, tensors in the host's arena."""
        return tensor.encode(value, arena=self.arena, views=self.views)

    def decode(self, value: Value) -> Any:
        """A value that the container sent."""
        return tensor.decode(value, self.views)

    @property
    def log(self) -> str:
        """What the container has printed so far."""
        return self._log.read_text()

    def close(self) -> None:
        """Close all sockets, which is the order to stop, and let go of all memory. Idempotent."""
        for link in (self.inbox, self.tasks, self.control):
            link.close()
        self.board.close()
        self.views.close()
        self.arena.close()

    def _announce(self, arena: int, nbytes: int, fd: int) -> None:
        self.inbox.send(wire.encode(wire.AttachArena(arena, nbytes)), (fd,))
