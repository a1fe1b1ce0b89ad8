"""What outlives an invocation: the interface, and the journal of a host without a state directory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from dataflower.core.trace import InvocationTrace
from dataflower.errors import Failure
from dataflower.host.api import State


@dataclass(frozen=True, slots=True)
class StoredWorkflow:
    """A version of a workflow.

    `source` is its YAML; `serving`: new invocations take this version; `plan`: the text of the plan that it is run
    by, empty if there is none.
    """

    name: str
    version: int
    source: str
    applied_at: float
    serving: bool = True
    plan: str = ""


class Entry(Struct, frozen=True):
    """What the journal knows of an invocation. Times are wall-clock seconds.

    `inputs` and `outputs` are blobs of `host.values`; `fingerprint` tells whether two submissions have the same inputs.
    `submitted` ones are run again after a crash, `attempts` counts their runs.
    """

    id: str
    workflow: str
    version: int
    state: State
    accepted_at: float
    submitted: bool = False
    attempts: int = 1
    deadline_at: float | None = None
    fingerprint: bytes = b""
    inputs: bytes | None = None
    finished_at: float | None = None
    outputs: bytes | None = None
    failure: Failure | None = None
    trace: InvocationTrace | None = None


class Journal(Protocol):
    """Workflows and invocations, kept."""

    def workflows(self) -> list[StoredWorkflow]:
        """Every version known, oldest first."""
        ...

    def unfinished(self) -> list[Entry]:
        """Submitted invocations that were running when the journal was opened, oldest first."""
        ...

    async def put_workflow(self, workflow: StoredWorkflow) -> None:
        """Store a version that serves from now on. Durable when it returns."""
        ...

    async def delete_workflow(self, name: str) -> None:
        """No version of the name serves any more. Durable when it returns."""
        ...

    async def accept(self, entry: Entry) -> None:
        """Store a running invocation. Durable when it returns."""
        ...

    async def forget(self, invocation: str) -> None:
        """Strike out an invocation that was refused after all."""
        ...

    def finish(self, entry: Entry) -> None:
        """Store the end of an invocation soon, without waiting."""
        ...

    async def get(self, invocation: str) -> Entry | None:
        """An invocation as it was stored last."""
        ...

    def recent(self, workflow: str | None, limit: int) -> list[Entry]:
        """The newest first, without inputs, outputs and traces."""
        ...

    async def close(self, interrupted: Iterable[str] = ()) -> None:
        """Write what is waiting and let go of the file. Submitted invocations that an orderly stop
        `interrupted` run again at the next start, and this does not count as a crash.
        """
        ...


class MemoryJournal:
    """The journal of a host that forgets everything when it stops."""

    def __init__(self, keep_finished: int, keep_bytes: int) -> None:
        """`keep_finished`: number of records; `keep_bytes`: their size, about."""
        self._keep = keep_finished
        self._keep_bytes = keep_bytes
        self._bytes = 0
        # Ordered, since taking the oldest from the front of a plain dict walks over all that was taken before.
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._workflows: dict[tuple[str, int], StoredWorkflow] = {}

    def workflows(self) -> list[StoredWorkflow]:  # noqa: D102
        return list(self._workflows.values())

    def unfinished(self) -> list[Entry]:  # noqa: D102
        return []

    async def put_workflow(self, workflow: StoredWorkflow) -> None:  # noqa: D102
        self._workflows[workflow.name, workflow.version] = workflow

    async def delete_workflow(self, name: str) -> None:  # noqa: D102
        for key in [key for key in self._workflows if key[0] == name]:
            del self._workflows[key]

    async def accept(self, entry: Entry) -> None:  # noqa: D102
        self._entries[entry.id] = entry
        self._bytes += _size_of(entry)

    async def forget(self, invocation: str) -> None:  # noqa: D102
        self._remove(invocation)

    def finish(self, entry: Entry) -> None:  # noqa: D102
        self._remove(entry.id)
        self._entries[entry.id] = entry
        self._bytes += _size_of(entry)
        while len(self._entries) > self._keep or self._bytes > self._keep_bytes:
            oldest = next((key for key, held in self._entries.items() if held.state is not State.RUNNING), entry.id)
            self._remove(oldest)
            if oldest == entry.id:
                return

    def _remove(self, invocation: str) -> None:
        entry = self._entries.pop(invocation, None)
        if entry is not None:
            self._bytes -= _size_of(entry)

    async def get(self, invocation: str) -> Entry | None:  # noqa: D102
        return self._entries.get(invocation)

    def recent(self, workflow: str | None, limit: int) -> list[Entry]:  # noqa: D102
        found: list[Entry] = []
        for entry in reversed(self._entries.values()):
            if len(found) == limit:
                break
            if workflow is None or entry.workflow == workflow:
                found.append(entry)
        return found

    async def close(self, interrupted: Iterable[str] = ()) -> None:  # noqa: D102
        self._entries.clear()


def _size_of(entry: Entry) -> int:
    tasks = 0 if entry.trace is None else len(entry.trace.tasks)
    return 1000 + 300 * tasks + len(entry.inputs or b"") + len(entry.outputs or b"")
