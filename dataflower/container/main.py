"""What a forked child does from its first instruction to its last."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from dataflower import wire
from dataflower.channel.board import BoardWriter
from dataflower.channel.link import Link
from dataflower.channel.segment import Spill
from dataflower.clock import SystemClock
from dataflower.container import failpoints, failure, loops, nudge, room, sandbox, strays, target
from dataflower.container.data_unit import BROKEN_STATUS, STOPPED_STATUS, DataUnit
from dataflower.container.failpoints import Point
from dataflower.container.failure import error_record, forget_frames
from dataflower.container.function_unit import FunctionUnit
from dataflower.container.heap import give_back_freed_memory, keep_freed_memory
from dataflower.container.keeper import Room
from dataflower.container.log import open_log
from dataflower.container.rehearsal import rehearse
from dataflower.container.target import Target
from dataflower.container.threads import set_compute_threads
from dataflower.container.view import View
from dataflower.errors import Code, EndOfStream, PeerGone
from dataflower.wire import Fork, Spare, Walls

START_FAILED_STATUS = 3
"""Exit status after `StartFailed`."""

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that computes in pure Python keeps the interpreter to itself while another wants it (ADR 10)."""

_monotonic = SystemClock().monotonic


@dataclass(frozen=True, slots=True)
class Shell:
    """What a child of the zygote gets from it. `lifeline`: see `sandbox.die_with_host`. `room`: if it has one."""

    lifeline: int | None = None
    walls: Walls = Walls.NONE
    view: View | None = None
    room: Room | None = None


def run(fork: Fork, descriptors: Sequence[int], shell: Shell) -> NoReturn:
    """Be the container that `fork` describes; never returns to the zygote's stack.

    Takes over the descriptors (inbox, task and control socket, log, board; perhaps a lifeline of its own).
    """

    def live() -> int:
        open_log(descriptors[3])
        folder, lifeline = _move_in(Spare(fork.isolated, fork.groups), shell, network=fork.network)
        _hang_alone(lifeline, descriptors[5:])
        return _become(fork, descriptors[:5], shell, folder)

    _end_with(live)


def wait(spare: Spare, link: Link, shell: Shell) -> NoReturn:
    """Do all that can be done before anyone knows which container this is to be; then be the one that is ordered.

    Takes over the link; its end is the order to leave.
    """

    def live() -> int:
        try:
            folder, lifeline = _move_in(spare, shell, network=False)
            rehearse()
            payload, descriptors = link.receive()
        except (EndOfStream, PeerGone):
            while shell.lifeline is not None:  # the host ends it; it couldn't tell whose this was from what has ended
                signal.pause()
            return STOPPED_STATUS
        link.close()
        fork = wire.decode_to_zygote(payload)
        assert isinstance(fork, Fork)
        open_log(descriptors[3])
        _hang_alone(lifeline, descriptors[5:])
        return _become(fork, descriptors[:5], shell, folder)

    _end_with(live)


def _hang_alone(shared: int | None, own: Sequence[int]) -> None:
    """Let go of the lifeline that many hang on before user code is here, if there is one for this process alone."""
    for lifeline in own:
        sandbox.die_with_host(lifeline)
        if shared is not None:
            os.close(shared)


def _end_with(live: Callable[[], int]) -> NoReturn:
    status = BROKEN_STATUS
    try:
        status = live()
    except BaseException:  # the last line of defence: whatever it is, it belongs in the log
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # user code may have put anything there
                stream.flush()
        os._exit(status)


def _move_in(spare: Spare, shell: Shell, *, network: bool) -> tuple[str, int | None]:
    """Session, room and sandbox, as far as they are the same for all containers.

    Gives the working directory, and the lifeline that it hangs on like others: none in a room, which its keeper ends.
    """
    sandbox.reset_signals()
    folder = os.getcwd()
    lifeline = sandbox.settle(spare, shell.lifeline)
    if shell.room is not None:
        shell.room.enter(network=network)
        shell.room.close()
        if lifeline is not None:
            os.close(lifeline)
            lifeline = None
    sandbox.enter(shell.walls if spare.isolated else Walls.NONE)
    faulthandler.enable(2)  # writing into a read-only view kills the process: say where
    gc.enable()
    keep_freed_memory()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # or all children of a zygote would draw the same numbers
    return folder, lifeline


def _become(fork: Fork, descriptors: Sequence[int], shell: Shell, folder: str) -> int:
    """What only this container needs, then its life."""
    sandbox.limit(fork.memory_bytes)
    walls = shell.walls if fork.isolated else Walls.NONE
    spill = _spill(fork, shell)
    if walls is Walls.LANDLOCK:
        assert shell.view is not None
        sandbox.confine(fork, shell.view)
    if walls is not Walls.NONE:
        _find_place(folder, "/tmp" if walls is Walls.ROOM else fork.scratch)
    sys.path[:0] = [path for path in fork.code_path if path not in sys.path]
    importlib.invalidate_caches()  # the zygote listed those directories long ago
    inbox, task, control, _, board = descriptors
    if os.environ.get(wire.STORE_VARIABLE) == wire.ASK_HOST:
        os.environ[wire.STORE_VARIABLE] = f"{task}:{os.fstat(task).st_ino}"
    return _serve(fork, (inbox, task, control), BoardWriter(board, fork.concurrency), spill)


def _spill(fork: Fork, shell: Shell) -> Spill | None:
    """Where its arena goes on when it is full: in a folder of its own."""
    if not fork.spill_dir:
        return None
    if shell.room is not None:  # where all have theirs this one alone shows
        return Spill(os.path.dirname(fork.spill_dir), fork.spill_cap_bytes, fork.spill_device, room.SPILLED)
    with contextlib.suppress(OSError):  # a full disk, say: then nothing is spilled
        os.mkdir(fork.spill_dir, 0o700)
    return Spill(fork.spill_dir, fork.spill_cap_bytes, fork.spill_device)


def _find_place(folder: str, scratch: str) -> None:
    """In a sandbox: the same working directory if it shows there, and a directory of its own for scratch files."""
    os.environ["TMPDIR"] = scratch
    failure.in_sandbox = True
    tempfile.tempdir = None
    try:
        os.chdir(folder)
    except OSError:
        os.chdir(scratch)


def _serve(fork: Fork, sockets: tuple[int, int, int], board: BoardWriter, spill: Spill | None) -> int:
    points = failpoints.load(os.environ, fork.stage)
    data = DataUnit(
        fork.owner or fork.container,
        *(Link(socket) for socket in sockets),
        board=board,
        arena_cap_bytes=fork.arena_cap_bytes,
        spill=spill,
        failpoints=points,
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    data.start()
    strays.watch()
    if points is not None:
        points.hit(Point.BEFORE_START)
    ready = _prepare(fork, data)
    if ready is None:
        return START_FAILED_STATUS
    nudge.listen()
    unit = FunctionUnit(ready, data, inputs=fork.inputs, outputs=fork.outputs, stage=fork.stage, failpoints=points)
    others = [threading.Thread(target=_serve_aside, args=(unit,), daemon=True) for _ in range(1, fork.concurrency)]
    for thread in others:
        thread.start()
    unit.serve()
    for thread in others:
        thread.join()
    try:
        ready.close()
        loops.close()
    except Exception:  # user code: its teardown hook
        traceback.print_exc()
    return STOPPED_STATUS


def _serve_aside(unit: FunctionUnit) -> None:
    try:
        unit.serve()
        loops.close()
    except BaseException:  # a bug: the host must see a death, not a container with a thread less
        traceback.print_exc()
        os._exit(BROKEN_STATUS)


def _prepare(fork: Fork, data: DataUnit) -> Target | None:
    """Import and set up the user's function, and say so; None if that failed (said so, too)."""
    set_compute_threads(fork.threads)
    began = _monotonic()
    found = _attempt(data, Code.FAILED_PRECONDITION, lambda: target.find(fork.function))
    if found is None:
        return None
    set_compute_threads(fork.threads)  # again: the import may have brought torch in
    imported = _monotonic()
    params = msgspec.msgpack.decode(fork.params) if fork.params else {}
    ready: Target | None = _attempt(data, Code.INTERNAL, lambda: target.build(found, params))
    if ready is not None:
        give_back_freed_memory()
        data.on_trim = ready.trim
        data.hello(imported - began, _monotonic() - imported)
    return ready


def _attempt(data: DataUnit, code: Code, step: Callable[[], Any]) -> Any:
    try:
        result = step()
    except BaseException as error:  # user code: its module's top level, its constructor, its setup
        strays.end_if_stray()
        record = error_record(error, code)
        print(record.traceback or f"{record.kind}: {record.message}", file=sys.stderr, flush=True)
        data.start_failed(record)
        forget_frames(error)
        return None
    strays.end_if_stray()
    return result
