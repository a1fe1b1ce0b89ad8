"""The data unit (DLU): everything that goes in and out of a container, so that user code does nothing but compute.

Threads: the function unit's threads receive tasks and send their own results (no hand-over on the way); one thread of
this unit listens to the control socket while user code runs; another, started when first needed, reports late views.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dataflower import phases, wire
from dataflower.channel import tensor
from dataflower.channel.arena import Arena
from dataflower.channel.board import BoardWriter
from dataflower.channel.link import Link
from dataflower.channel.pace import prompt
from dataflower.channel.segment import Spill
from dataflower.channel.tensor import Uncopied
from dataflower.channel.views import ANY_DEVICE, Views
from dataflower.clock import SystemClock
from dataflower.container.attachments import CONTROL, INBOX, Attachments
from dataflower.container.batch import BatchMember, RunningBatch
from dataflower.container.copies import Copies
from dataflower.container.failpoints import FailPoints, Point
from dataflower.container.failure import Cancelled, TypeMismatch, error_record
from dataflower.container.late_views import LateViews, Slots
from dataflower.container.relay import Relay
from dataflower.container.returns import Returns
from dataflower.container.running import RunningTask
from dataflower.container.stream import StreamReader, refs_of, value_bytes
from dataflower.errors import Closed, EndOfStream, InvalidArgument, PeerGone
from dataflower.wire import (
    VERSION,
    ArenaMade,
    AttachArena,
    BatchDone,
    CancelTask,
    CloseLink,
    Computed,
    DetachArena,
    ErrorRecord,
    Feed,
    FeedEnd,
    FromContainer,
    Gathered,
    Grant,
    Hello,
    Next,
    Opened,
    OpenLink,
    Prefetch,
    ReleaseSlots,
    RunBatch,
    RunMany,
    RunTask,
    Single,
    StartFailed,
    Starved,
    Taken,
    TaskDone,
    TaskFailed,
    Times,
    ToContainer,
    TokenSent,
    Trim,
    Trimmed,
    Value,
    Withdraw,
    Withdrawn,
)

STOPPED_STATUS = 0
"""Exit status when the host closed a socket, whether idle or busy."""
BROKEN_STATUS = 70
"""Exit status when the host said something that makes no sense."""

POST_WITHIN_S = 0.004
"""Reports of tasks that took longer are sent. The host looks at boards until a little more than that has passed."""
_UNLIMITED_BYTES = 1 << 46
_FINISHED_KEPT = 4096
_EARLY_KEPT = 4096

_monotonic = SystemClock().monotonic
_encode = wire.encode


class DataUnit:
    """Owns both sockets, the container's arena and its views of other containers' arenas. Thread-safe."""

    def __init__(
        self,
        container: int,
        inbox: Link,
        tasks: Link,
        control: Link,
        *,
        board: BoardWriter | None = None,
        arena_cap_bytes: int = 0,
        spill: Spill | None = None,
        failpoints: FailPoints | None = None,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        """Take over the links: inbox, task and control socket.

        `board`: where tasks are noted as they begin, and reports are posted. `arena_cap_bytes` 0: no cap; above it,
        `spill`. `leave` ends the process at once.
        """
        self._container = container
        self._inbox = inbox
        self._tasks = tasks
        self._control = control
        self._board = board
        self._heed_stops: Callable[[], object] = (lambda: None) if board is None else board.heed_stops
        self._failpoints = failpoints
        self._leave = leave
        self.arena = Arena(
            container,
            cap_bytes=arena_cap_bytes or _UNLIMITED_BYTES,
            announce=self._announce,
            setting="container_arena_bytes",
            spill=spill,
        )
        self._returns = Returns(container, self.arena, board)
        self._late = LateViews(self._send)
        # The host has checked on which device the files of other containers lie.
        self.views = Views(on_unheld=self._late.unheld, keep_descriptors=True, files_on=ANY_DEVICE)
        self._lock = threading.Lock()
        self._copies = Copies(lambda slots: self.arena.release(slots, unsent=True), lambda: self._quit(BROKEN_STATUS))
        self._relay = Relay(container, self.views)
        self._attached = Attachments(self.views, self._relay)
        self._pending: deque[RunTask] = deque()
        """Tasks that came together with others (only where one thread takes tasks); those have not begun."""
        self._pending_since = 0.0
        self._running: dict[int, RunningTask] = {}
        self._early: dict[int, list[ToContainer]] = {}
        """Control messages that overtook their RunTask."""
        self.on_trim: Callable[[], object] = lambda: None
        """Gives back memory that the function can do without; called in a thread of its own."""
        self._withdrawn: set[int] = set()
        """Tasks that the host has had back before this unit read them: they are dropped when they come."""
        self._finished: dict[int, None] = {}
        """The last tasks that ended: what still comes for them is thrown away."""
        self._ready = False
        self._stopping = False

    # --- start and stop

    def start(self) -> None:
        """Listen to the control socket from now on."""
        threading.Thread(target=self._listen, name="data-unit", daemon=True).start()

    def hello(self, import_s: float, setup_s: float) -> None:
        """Tell the host that tasks may come."""
        with self._lock:
            self._ready = True
        self._send(Hello(VERSION, os.getpid(), import_s, setup_s, phases.collect()))

    def start_failed(self, error: ErrorRecord) -> None:
        """Tell the host that no task will ever run here."""
        self._send(StartFailed(error))

    def _stop(self) -> None:
        """A socket was closed: leave at once if user code runs, else let `next_task` end."""
        with self._lock:
            self._stopping = True
            busy = bool(self._running) or not self._ready
        if busy:
            self._quit(STOPPED_STATUS)
        self._inbox.close()

    def _quit(self, status: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # user code may have put anything there
                stream.flush()
        self._leave(status)

    # --- tasks in

    def next_task(self) -> RunningTask | RunningBatch | None:
        """Block until there is a task for the calling thread; None when it is time to leave."""
        pending = self._pending
        while True:
            if pending:
                task = RunningTask(pending.popleft(), self._pending_since)
                if self._begin(task):
                    return task
                if self._stopping:
                    return None
                continue
            try:
                payload, fds = self._inbox.receive()
            except (EndOfStream, PeerGone, Closed):
                self._stop()
                return None
            received = _monotonic()
            message = wire.decode_to_container(payload)
            if type(message) is RunTask:
                task = RunningTask(message, received)
                if self._begin(task):
                    return task
                if self._stopping:
                    return None
            elif type(message) is RunMany:
                pending.extend(message.tasks)
                self._pending_since = received
            elif type(message) is RunBatch:
                return self._begin_batch(RunningBatch(message, received))
            else:
                self._handle(message, fds, INBOX)

    def _begin(self, task: RunningTask) -> bool:
        """Enter it into the books, unless the host has had it back, or it is time to leave."""
        self._heed_stops()
        self._returns.look()
        with self._lock:
            if self._stopping:
                return False
            if self._withdrawn and task.number in self._withdrawn:
                self._withdrawn.discard(task.number)
                self._early.pop(task.number, None)
                return False
            self._finished.pop(task.number, None)
            for entry in task.run.inputs:
                if type(entry) is Opened:
                    task.streams[entry.name] = StreamReader(
                        task, entry.name, entry.values, entry.ended, decode=self._take_in, report=self._report_taken
                    )
            self._running[task.number] = task
            if self._board is not None:
                self._board.begin(task.thread, task.number)
            for message in self._early.pop(task.number, ()) if self._early else ():
                _apply(task, message)
        return True

    def _begin_batch(self, batch: RunningBatch) -> RunningBatch | None:
        for member in batch.members:
            if not self._begin(member):
                return None
        return batch

    def fetch(self, task: RunningTask) -> dict[str, Any]:
        """The task's inputs, tensors as read-only views."""
        inputs: dict[str, Any] = {}
        for entry in task.run.inputs:
            if type(entry) is Single:
                inputs[entry.name] = self._take_in(entry.value, task.slots)
            elif type(entry) is Gathered:
                inputs[entry.name] = [self._take_in(value, task.slots) for value in entry.values]
            else:
                inputs[entry.name] = task.streams[entry.name]
        task.fetched = _monotonic()
        self._heed_stops()  # getting here may have taken a while
        return inputs

    def _take_in(self, value: Value, slots: list[tuple[int, int]] | None = None) -> Any:
        if value.tensors or value.spilled is not None:
            for ref in refs_of(value):
                if not self._attached.knows(ref.arena) and ref.arena >> 16 != self._container:  # another thread gets it
                    self.views.wait_attached((ref.arena,))
                if slots is not None:
                    slots.append((ref.arena, ref.slot))
        return tensor.decode(value, self.views)

    # --- results out

    def send_item(self, task: RunningTask, ports: dict[str, Any]) -> None:
        """Send one item of the task's streams (there is credit for it). Raises as `encode_outputs`.

        Perhaps it leaves after that, when it is copied; `ports` does not hold it any more then.
        """
        failpoints = self._failpoints
        if failpoints is not None:
            failpoints.hit(Point.MID_COMPUTE, task.run.attempt)
        uncopied = Uncopied()
        outputs = self.encode_outputs(task, ports, uncopied=uncopied)
        if failpoints is not None:
            failpoints.hit(Point.MID_WRITE, task.run.attempt)
        if not task.emitted_items:
            task.first_output = _monotonic()
        token = TokenSent(task.number, task.emitted_items, outputs)
        if task.is_copied:
            self._copied(task)
        if not uncopied.places:
            self._send(token)
        elif self._copies.beside(task, ports, uncopied, then=lambda: self._send(token), cancelled=_nothing):
            task.is_copied = True
        else:
            self._copies.here(ports, uncopied)
            self._send(token)
        task.emitted_items += 1
        task.emitted_bytes += sum(value_bytes(value) for value in outputs.values())

    def _copied(self, task: RunningTask) -> None:
        """Wait for the item before to leave."""
        self._copies.wait()
        task.is_copied = False

    def finish_later(
        self, task: RunningTask, ports: dict[str, Any], uncopied: Uncopied, outputs: dict[str, Value]
    ) -> bool:
        """Copy outputs. True: beside the function, which may go on with another task; then this one is reported, too.

        The caller has let go of the task's inputs, and holds the outputs under no name but `ports`.
        """
        if task.is_copied:
            self._copied(task)
        task.ended = _monotonic()
        if self._copies.pays(task, ports, uncopied) and self._copies.beside(
            task,
            ports,
            uncopied,
            then=lambda: self.finish(task, outputs),
            cancelled=lambda: self.fail(task, error_record(Cancelled(task.reason))),
            before=lambda: self._send(Computed(task.number)),
        ):
            return True
        self._copies.here(ports, uncopied)
        task.ended = 0.0
        return False

    def encode_outputs(
        self,
        task: RunningTask,
        ports: Mapping[str, Any],
        starve: Callable[[int], bool] | None = None,
        uncopied: Uncopied | None = None,
    ) -> dict[str, Value]:
        """Bring values into their form on the wire; may wait for room in the arena.

        `starve`: what to do before that instead of `self.starve`. `uncopied`: see `tensor.encode_ports`.

        Raises TypeMismatch (no such type on the wire), ResourceExhausted, Cancelled; then nothing stays allocated.
        """
        try:
            return tensor.encode_ports(
                ports,
                arena=self.arena,
                views=self.views,
                cancelled=starve or (lambda released: self.starve(task, released)),
                uncopied=uncopied,
            )
        except InvalidArgument as error:
            raise TypeMismatch(f"output: {error.message}") from None
        except Exception:
            if task.reason is not None:
                raise Cancelled(task.reason) from None
            raise

    def starve(self, task: RunningTask, released: int) -> bool:
        """The task is about to wait for room in the arena: the host must know, for perhaps all wait for each other.

        Gives whether it was cancelled.
        """
        if task.reason is None:
            self._send(Starved(task.number, released))
        return task.reason is not None

    def finish(self, task: RunningTask, outputs: dict[str, Value]) -> None:
        """Report success. The caller has let go of the task's inputs."""
        if task.is_copied:
            self._copied(task)
        ended = task.ended or _monotonic()
        first = task.first_output or (ended if outputs else 0.0)
        times = Times(task.received, task.fetched, task.started, first, ended)
        if self._failpoints is not None:
            self._failpoints.hit(Point.MID_WRITE, task.run.attempt)
        then = task.run.then if task.reason is None else None
        if then is not None:
            if then.may_post and self._post(task, then, outputs, times):
                return
            if not self._relay.forward(task.run, then, outputs):
                then = None
        forwarded = 0 if then is None else then.task
        number, items = task.number, task.emitted_items
        slots = self._end(task)
        if slots:
            self._late.declare(self.views, slots, lambda held: TaskDone(number, outputs, items, times, held, forwarded))
        else:
            self._send(TaskDone(number, outputs, items, times, (), forwarded))
        if self._failpoints is not None:
            self._failpoints.hit(Point.AFTER_HANDOVER, task.run.attempt)

    def _post(self, task: RunningTask, then: Next, outputs: dict[str, Value], times: Times) -> bool:
        """Hand the outputs on and leave the report of it on the board. False: it must be sent, and nothing was done.

        That is where the host has to hear of something else first: items, arenas made here, views that are kept.
        """
        board = self._board
        if board is None or task.streams or task.emitted_items or times.ended - times.received > POST_WITHIN_S:
            return False
        if not self._returns.are_known(outputs):
            return False
        if task.slots and self.views.held(task.slots, watch=False):
            return False
        parcel = self._relay.pack(task.run, then, outputs)
        if parcel is None:
            return False
        report = board.post(_encode(TaskDone(task.number, outputs, 0, times, (), then.task)))
        if not report:
            return False
        if self._failpoints is not None:
            self._failpoints.hit(Point.MID_HANDOVER, task.run.attempt)
        self._forget(task)
        link, message = parcel
        with contextlib.suppress(PeerGone, Closed):  # the host sees that the other is dead, and that it had not begun
            link.send(message)
        board.handed(report)
        if self._failpoints is not None:
            self._failpoints.hit(Point.AFTER_HANDOVER, task.run.attempt)
        return True

    def fail(self, task: RunningTask, error: ErrorRecord) -> None:
        """Report failure or cancellation. The caller has let go of the task's inputs and the exception's frames."""
        if task.is_copied:
            self._copied(task)
        times = Times(task.received, task.fetched, task.started, task.first_output, _monotonic())
        number = task.number
        slots = self._end(task)
        if slots:
            self._late.declare(self.views, slots, lambda held: TaskFailed(number, error, times, held))
        else:
            self._send(TaskFailed(number, error, times))

    def finish_batch(
        self, batch: RunningBatch, results: Sequence[tuple[BatchMember, dict[str, Value] | ErrorRecord]]
    ) -> None:
        """Report several tasks of a batch at once: all of them, or those that are done while others wait for room.

        The caller has let go of their inputs.
        """
        if not results:
            return
        ended, whole = _monotonic(), batch.whole
        for member, _ in results:
            self._forget(member)
            batch.waiting.remove(member)
        slots = [slot for member, _ in results for slot in member.slots]

        def message(held: Slots) -> FromContainer:
            said: list[TaskDone | TaskFailed] = []
            for member, result in results:
                first = ended if isinstance(result, dict) and result else 0.0
                times = Times(member.received, whole.fetched, whole.started, first, ended)
                own = held if not said else ()
                if isinstance(result, dict):
                    said.append(TaskDone(member.number, result, 0, times, own))
                else:
                    said.append(TaskFailed(member.number, result, times, own))
            return BatchDone(tuple(said))

        if self._failpoints is not None:
            self._failpoints.hit(Point.MID_WRITE, whole.run.attempt)
        if slots:
            self._late.declare(self.views, slots, message)
        else:
            self._send(message(()))
        if self._failpoints is not None:
            self._failpoints.hit(Point.AFTER_HANDOVER, whole.run.attempt)

    def _forget(self, task: RunningTask) -> None:
        with self._lock:
            del self._running[task.number]
            finished = self._finished
            finished[task.number] = None
            if len(finished) > _FINISHED_KEPT:
                del finished[next(iter(finished))]

    def _end(self, task: RunningTask) -> list[tuple[int, int]]:
        """It is over. Gives the slots that it was given, of which views may live on."""
        self._forget(task)
        slots = task.slots
        if task.streams:
            slots = [*slots, *(slot for stream in task.streams.values() for slot in stream.all_slots())]
        return slots

    def _report_taken(self, stream: StreamReader, task: RunningTask) -> None:
        slots = stream.take_slots()
        number, name, taken = task.number, stream.name, stream.taken
        if slots:
            self._late.declare(self.views, slots, lambda held: Taken(number, name, taken, held))
        else:
            self._send(Taken(number, name, taken))

    # --- control

    def _listen(self) -> None:
        prompt()
        try:
            while True:
                try:
                    payload, fds = self._control.receive()
                except (EndOfStream, PeerGone, Closed):
                    self._stop()
                    return
                self._handle(wire.decode_to_container(payload), fds, CONTROL)
        except BaseException:  # the host broke the protocol, or this is a bug: say so and let it see the death
            traceback.print_exc()
            self._quit(BROKEN_STATUS)

    def _handle(self, message: ToContainer, fds: list[int], socket: int) -> None:
        if isinstance(message, AttachArena):
            self._attached.attach(message, fds, socket)
            return
        if isinstance(message, OpenLink):
            self._relay.open(message.container, *fds)
            return
        for fd in fds:
            os.close(fd)
        if isinstance(message, ReleaseSlots):
            self._returns.said(message.slots)
        elif isinstance(message, DetachArena):
            self._attached.detach(message.arena, socket)
        elif isinstance(message, CloseLink):
            self._relay.close(message.container)
        elif isinstance(message, Withdraw):
            self._withdraw(message)
        elif isinstance(message, Trim):
            threading.Thread(target=self._trim, name="trim", daemon=True).start()
        elif isinstance(message, Prefetch):
            for ref in message.refs:
                self.views.prefetch(ref)
        elif not isinstance(message, RunBatch | RunMany):
            self._tell(message)
        if isinstance(message, CancelTask | Withdraw) and self._board is not None:
            self._board.heard_stop()

    def _trim(self) -> None:
        """Whatever becomes of it the host is told, since it counts on the memory."""
        try:
            self.on_trim()
        except Exception:  # user code: its hook
            traceback.print_exc()
        self._send(Trimmed())

    def _withdraw(self, message: Withdraw) -> None:
        """Give back what has not begun; stop what has, if there is a reason."""
        unbegun = []
        with self._lock:
            for number in message.tasks:
                task = self._running.get(number)
                if task is None:
                    if number not in self._finished:
                        self._withdrawn.add(number)
                        unbegun.append(number)
                elif message.reason:
                    task.cancel(message.reason)
        if unbegun:
            self._send(Withdrawn(tuple(unbegun)))
        if message.reason:
            self.arena.interrupt()

    def _tell(self, message: RunTask | Feed | FeedEnd | Grant | CancelTask) -> None:
        with self._lock:
            task = self._running.get(message.task)
            if task is None:
                if message.task not in self._finished:
                    self._early.setdefault(message.task, []).append(message)
                    if len(self._early) > _EARLY_KEPT:  # promised to us, cancelled, and never handed on
                        del self._early[next(iter(self._early))]
                return
            _apply(task, message)
        if isinstance(message, CancelTask):
            self.arena.interrupt()

    def _announce(self, arena: int, nbytes: int, fd: int) -> None:
        self._relay.know(arena, nbytes, fd)
        self._send(ArenaMade(arena, nbytes), (fd,))

    def _send(self, message: FromContainer, fds: tuple[int, ...] = ()) -> None:
        try:
            self._tasks.send(_encode(message), fds)
        except (PeerGone, Closed):  # nobody is left to work for
            self._quit(STOPPED_STATUS)


def _apply(task: RunningTask, message: ToContainer) -> None:
    if isinstance(message, Feed):
        task.feed(message.name, message.values, False)
    elif isinstance(message, FeedEnd):
        task.feed(message.name, (), True)
    elif isinstance(message, Grant):
        task.grant(message.items, message.bytes)
    elif isinstance(message, CancelTask):
        task.cancel(message.reason)
    else:
        raise InvalidArgument(f"{type(message).__name__} does not belong on the control socket")


def _nothing() -> None: ...
