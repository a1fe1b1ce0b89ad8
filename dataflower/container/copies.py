"""Large outputs that have to be copied into the arena: by a thread of the data unit, while the function computes on.

That is done where nobody else can reach the array any more (`ownership`), so nobody can write it meanwhile, and for the
next task only where it pays (`overlap`); else the copy is made at hand-over. Room for it is there already, and the
message leaves when the copy is whole.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any

from dataflower.channel.tensor import Uncopied, copy_into
from dataflower.container.overlap import Overlap
from dataflower.container.ownership import is_sole_owner
from dataflower.container.running import RunningTask

Step = Callable[[], None]


class Copies:
    """Makes copies, at most one message's at a time beside the function; what comes meanwhile is copied at hand-over.

    Thread-safe. Its thread is started when it is first needed.
    """

    def __init__(self, release: Callable[[list[tuple[int, int]]], None], broken: Step) -> None:
        """`release` gives back slots that nobody was told of; `broken` is called after an error, which is a bug."""
        self._release = release
        self._broken = broken
        self._overlap = Overlap()
        self._idle = threading.Lock()
        """Held by whoever has work in the queue or being done."""
        self._queue: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def beside(
        self,
        task: RunningTask,
        ports: dict[str, Any],
        uncopied: Uncopied,
        *,
        then: Step,
        cancelled: Step,
        before: Step | None = None,
    ) -> bool:
        """Begin to copy, then call `then`, or `cancelled` if nobody wants it (its slots are free); False: copy it here.

        True: `ports` does not hold the arrays any more. The caller holds them under no other name. `before` is called
        on the calling thread, if anything begins.
        """
        if not _are_owned(ports, uncopied) or not self._idle.acquire(blocking=False):
            return False
        arrays = [(slot, ports.pop(name)) for name, slot in uncopied.places]

        def work() -> None:
            while arrays:
                slot, array = arrays.pop()
                if task.reason is None:
                    copy_into(slot, array)
            if task.reason is None:
                then()
            else:
                self._release(uncopied.made)
                cancelled()
            self._idle.release()  # before the arrays are freed, which takes a while

        if before is not None:
            before()
        self._queue.put(work)
        if self._worker is None:
            self._worker = threading.Thread(target=self._run, name="data-unit-copies", daemon=True)
            self._worker.start()
        return True

    def pays(self, task: RunningTask, ports: dict[str, Any], uncopied: Uncopied) -> bool:
        """Whether the outputs of a task whose function is over had better be copied beside the next."""
        return self._overlap.ran(task.received, wanted=task.run.wanted and _are_owned(ports, uncopied))

    def here(self, ports: dict[str, Any], uncopied: Uncopied) -> None:
        """Make the copies on the calling thread."""
        for name, slot in uncopied.places:
            copy_into(slot, ports[name])

    def wait(self) -> None:
        """Return when nothing is being copied beside the function."""
        with self._idle:
            pass

    def _run(self) -> None:
        try:
            while True:
                self._queue.get()()
        except BaseException:
            traceback.print_exc()
            self._broken()


def _are_owned(ports: dict[str, Any], uncopied: Uncopied) -> bool:
    return all(is_sole_owner(ports, name) for name, _ in uncopied.places)
