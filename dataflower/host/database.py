"""The journal on disk: SQLite in WAL mode, written by one thread that commits whatever has gathered at once."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from dataflower.clock import Clock
from dataflower.core.trace import InvocationTrace
from dataflower.errors import FailedPrecondition, Failure, Unavailable
from dataflower.host.api import State
from dataflower.host.journal import Entry, StoredWorkflow

_log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
FILE = "journal.sqlite3"
LOCK = "lock"
GATHER_S = 0.05
"""How long the end of a synchronous invocation may wait for company before it is written."""
PRUNE_EVERY = 512
"""Finished invocations between two looks at what is too old to keep."""

_SCHEMA = """
CREATE TABLE workflows (
    name TEXT NOT NULL, version INTEGER NOT NULL, source TEXT NOT NULL, applied_at REAL NOT NULL,
    serving INTEGER NOT NULL, plan TEXT NOT NULL DEFAULT '', PRIMARY KEY (name, version));
CREATE TABLE invocations (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, workflow TEXT NOT NULL, version INTEGER NOT NULL,
    state TEXT NOT NULL, accepted_at REAL NOT NULL, submitted INTEGER NOT NULL, attempts INTEGER NOT NULL,
    deadline_at REAL, fingerprint BLOB NOT NULL, inputs BLOB, finished_at REAL, outputs BLOB, failure BLOB,
    trace BLOB);
CREATE INDEX invocations_by_workflow ON invocations (workflow, seq);
CREATE INDEX invocations_by_end ON invocations (finished_at);
"""
_MIGRATIONS = {1: "ALTER TABLE workflows ADD COLUMN plan TEXT NOT NULL DEFAULT '';"}
"""From an older schema to this one."""
_BRIEF = (
    "id, workflow, version, state, accepted_at, submitted, attempts, deadline_at, fingerprint, finished_at, failure"
)
_FULL = _BRIEF + ", inputs, outputs, trace"
_UPSERT = f"""INSERT INTO invocations ({_FULL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, attempts = excluded.attempts,
    finished_at = excluded.finished_at, failure = excluded.failure, inputs = excluded.inputs,
    outputs = excluded.outputs, trace = excluded.trace"""

_encode = msgspec.msgpack.encode
_decode_failure = msgspec.msgpack.Decoder(Failure).decode
_decode_trace = msgspec.msgpack.Decoder(InvocationTrace).decode

Work = Callable[[sqlite3.Connection], Any]


class JournalUnreadable(FailedPrecondition):
    """The journal's file is damaged or of another version; `path` names it."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"the journal {path} can't be read: {why} (move the file away, or set "
            "`set_aside_corrupt_journal` to have it kept beside a new one; its invocations are not resumed then)"
        )
        self.path = path


def set_aside(path: Path, wall: float) -> Path:
    """Move a journal that can't be read out of the way and return where it is now."""
    aside = path.with_name(f"{path.name}.corrupt-{int(wall)}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    return aside


class DatabaseJournal:
    """`Journal` in a directory, which it locks: a second host on the same directory is refused."""

    def __init__(
        self, directory: Path, clock: Clock, *, keep_finished: int, keep_finished_s: float, replace: bool = False
    ) -> None:
        """Open or make the file. `replace`: a file that can't be read is set aside.

        Raises `JournalUnreadable`, and FailedPrecondition if the directory can't be used or another host uses it.
        Call `close`.
        """
        self._path = directory / FILE
        self._clock = clock
        self._keep = keep_finished
        self._keep_s = keep_finished_s
        self._loop = asyncio.get_running_loop()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._lock = _take_lock(directory / LOCK)
        except OSError as error:
            why = "it is no directory" if isinstance(error, FileExistsError) else error.strerror
            raise FailedPrecondition(
                f"the state directory {directory} can't be used: {why}; choose another with --state-dir"
            ) from None
        try:
            self._writer = self._open(replace)
            _prune(self._writer, keep_finished, clock.wall() - keep_finished_s)
            self._reader = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        except BaseException:
            os.close(self._lock)
            raise
        self._jobs: queue.SimpleQueue[list[tuple[Work, asyncio.Future[Any] | None]] | None] = queue.SimpleQueue()
        self._gathered: list[Entry] = []
        self._unwritten: dict[str, Entry] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._finished_since_prune = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dataflower-journal", daemon=True)
        self._thread.start()

    def _open(self, replace: bool) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except JournalUnreadable as error:
            if not replace:
                raise
            _log.warning("%s; kept as %s", error, set_aside(self._path, self._clock.wall()))
            return _connect(self._path)

    # --- reading ---------------------------------------------------------------------------------------------

    def workflows(self) -> list[StoredWorkflow]:  # noqa: D102
        rows = self._reader.execute(
            "SELECT name, version, source, applied_at, serving, plan FROM workflows ORDER BY name, version"
        )
        return [StoredWorkflow(name, version, text, at, bool(on), plan) for name, version, text, at, on, plan in rows]

    def unfinished(self) -> list[Entry]:  # noqa: D102
        rows = self._reader.execute(
            f"SELECT {_FULL} FROM invocations WHERE submitted AND finished_at IS NULL ORDER BY seq"
        )
        return [_entry(row) for row in rows]

    def recent(self, workflow: str | None, limit: int) -> list[Entry]:  # noqa: D102
        where, values = ("WHERE workflow = ?", (workflow, limit)) if workflow is not None else ("", (limit,))
        rows = self._reader.execute(f"SELECT {_BRIEF} FROM invocations {where} ORDER BY seq DESC LIMIT ?", values)
        found = {row[0]: _entry((*row, None, None, None)) for row in rows}
        for entry in self._unwritten.values():
            if workflow is None or entry.workflow == workflow:
                found[entry.id] = entry
        return sorted(found.values(), key=lambda entry: -entry.accepted_at)[:limit]

    async def get(self, invocation: str) -> Entry | None:  # noqa: D102
        waiting = self._unwritten.get(invocation)
        if waiting is not None:
            return waiting

        if self._closed:
            raise Unavailable("the journal is closed")
        # Straight from the file: behind the writer it would wait for the disk, as every call that brings an id would.
        try:
            rows = self._reader.execute(f"SELECT {_FULL} FROM invocations WHERE id = ?", (invocation,)).fetchall()
        except sqlite3.Error as error:
            raise Unavailable(f"the journal {self._path} could not be read: {error}") from error
        return _entry(rows[0]) if rows else None

    # --- writing ---------------------------------------------------------------------------------------------

    async def put_workflow(self, workflow: StoredWorkflow) -> None:  # noqa: D102
        def write(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE workflows SET serving = 0 WHERE name = ?", (workflow.name,))
            connection.execute(
                "INSERT OR REPLACE INTO workflows (name, version, source, applied_at, serving, plan) "
                "VALUES (?, ?, ?, ?, 1, ?)",
                (workflow.name, workflow.version, workflow.source, workflow.applied_at, workflow.plan),
            )

        await self._submit(write)

    async def delete_workflow(self, name: str) -> None:  # noqa: D102
        # The row of the newest version stays, so that a workflow of the same name goes on counting from there.
        await self._submit(
            lambda connection: connection.execute("UPDATE workflows SET serving = 0 WHERE name = ?", (name,))
        )

    async def accept(self, entry: Entry) -> None:  # noqa: D102
        await self._submit(lambda connection: connection.execute(_UPSERT, _row(entry)))

    async def forget(self, invocation: str) -> None:  # noqa: D102
        await self._submit(lambda connection: connection.execute("DELETE FROM invocations WHERE id = ?", (invocation,)))

    def finish(self, entry: Entry) -> None:  # noqa: D102
        self._unwritten[entry.id] = entry
        self._gathered.append(entry)
        if entry.submitted:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(GATHER_S, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._gathered:
            self._jobs.put(self._take_gathered())

    def _take_gathered(self) -> list[tuple[Work, asyncio.Future[Any] | None]]:
        entries, self._gathered = self._gathered, []
        if not entries:
            return []
        written = self._loop.create_future()
        written.add_done_callback(lambda future: self._on_written(entries, future))
        return [(lambda connection: self._write_finished(connection, entries), written)]

    def _write_finished(self, connection: sqlite3.Connection, entries: list[Entry]) -> None:
        connection.executemany(_UPSERT, [_row(entry) for entry in entries])
        self._finished_since_prune += len(entries)
        if self._finished_since_prune >= PRUNE_EVERY:
            self._finished_since_prune = 0
            _prune(connection, self._keep, self._clock.wall() - self._keep_s)

    def _on_written(self, entries: list[Entry], future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and future.exception() is not None:
            _log.error("the end of %d invocations could not be written: %s", len(entries), future.exception())
        for entry in entries:
            if self._unwritten.get(entry.id) is entry:
                del self._unwritten[entry.id]

    async def _submit(self, work: Work) -> Any:
        if self._closed:
            raise Unavailable("the journal is closed")
        future = self._loop.create_future()
        self._jobs.put([*self._take_gathered(), (work, future)])
        return await future

    async def close(self, interrupted: Iterable[str] = ()) -> None:  # noqa: D102
        if self._closed:
            return
        ids = [(invocation,) for invocation in interrupted]
        statement = "UPDATE invocations SET attempts = max(attempts - 1, 0) WHERE id = ? AND finished_at IS NULL"
        try:
            await self._submit(lambda connection: connection.executemany(statement, ids))
        except Unavailable as error:  # a full disk, say: the file is let go of all the same
            _log.error("the last words of the journal are lost: %s", error)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reader.close()
        os.close(self._lock)

    # --- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        stopping = False
        while not stopping:
            jobs: list[tuple[Work, asyncio.Future[Any] | None]] = []
            batch = self._jobs.get()
            while True:  # everything that has gathered meanwhile shares one commit
                if batch is None:
                    stopping = True
                else:
                    jobs.extend(batch)
                try:
                    batch = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if jobs:
                self._settle(jobs, *self._commit([work for work, _ in jobs]))
        self._writer.close()

    def _commit(self, works: list[Work]) -> tuple[list[Any], BaseException | None]:
        try:
            self._writer.execute("BEGIN")
            results = [work(self._writer) for work in works]
            self._writer.execute("COMMIT")
        except Exception as error:  # the top of this thread: a failed write must reach those who wait for it
            _log.error("writing the journal %s failed: %s", self._path, error)
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            return [], error
        return results, None

    def _settle(
        self, jobs: list[tuple[Work, asyncio.Future[Any] | None]], results: list[Any], error: BaseException | None
    ) -> None:
        def settle() -> None:
            for position, (_, future) in enumerate(jobs):
                if future is None or future.done():
                    continue
                if error is not None:
                    future.set_exception(Unavailable(f"the journal {self._path} could not be written: {error}"))
                else:
                    future.set_result(results[position])

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise FailedPrecondition(
            f"the state directory {path.parent} is in use by another server{holder and f' (pid {holder})'}; "
            "stop it or choose another with --state-dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        found = connection.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise JournalUnreadable(path, found)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version in _MIGRATIONS:
            connection.executescript(f"BEGIN; {_MIGRATIONS[version]} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise JournalUnreadable(path, f"it has schema version {version}, this program reads {SCHEMA_VERSION}")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise JournalUnreadable(path, str(error)) from error
    except JournalUnreadable:
        connection.close()
        raise
    return connection


def _prune(connection: sqlite3.Connection, keep: int, oldest: float) -> None:
    connection.execute("DELETE FROM invocations WHERE finished_at < ?", (oldest,))
    connection.execute(
        "DELETE FROM invocations WHERE finished_at IS NOT NULL AND seq <= (SELECT seq FROM invocations "
        "WHERE finished_at IS NOT NULL ORDER BY seq DESC LIMIT 1 OFFSET ?)",
        (keep,),
    )
    connection.execute(
        "DELETE FROM workflows WHERE NOT serving AND version < (SELECT max(version) FROM workflows AS newest "
        "WHERE newest.name = workflows.name) AND NOT EXISTS (SELECT 1 FROM invocations WHERE finished_at IS NULL "
        "AND invocations.workflow = workflows.name AND invocations.version = workflows.version)"
    )


def _row(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.id,
        entry.workflow,
        entry.version,
        entry.state.value,
        entry.accepted_at,
        entry.submitted,
        entry.attempts,
        entry.deadline_at,
        entry.fingerprint,
        entry.finished_at,
        None if entry.failure is None else _encode(entry.failure),
        entry.inputs,
        entry.outputs,
        None if entry.trace is None else _encode(entry.trace),
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    (id_, workflow, version, state, accepted, submitted, attempts, deadline, fingerprint, finished, failure) = row[:11]
    inputs, outputs, trace = row[11:]
    return Entry(
        id=id_,
        workflow=workflow,
        version=version,
        state=State(state),
        accepted_at=accepted,
        submitted=bool(submitted),
        attempts=attempts,
        deadline_at=deadline,
        fingerprint=fingerprint,
        inputs=inputs,
        finished_at=finished,
        outputs=outputs,
        failure=None if failure is None else _decode_failure(failure),
        trace=None if trace is None else _decode_trace(trace),
    )
