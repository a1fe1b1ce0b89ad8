"""One suite for both journals, and what only the one on disk must do."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from dataflower.clock import SystemClock
from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.errors import Code, FailedPrecondition, Failure, Unavailable
from dataflower.host.api import State
from dataflower.host.database import FILE, PRUNE_EVERY, DatabaseJournal, JournalUnreadable
from dataflower.host.journal import Entry, Journal, MemoryJournal, StoredWorkflow

RUNNING = Entry(
    "job",
    "w",
    1,
    State.RUNNING,
    100.0,
    submitted=True,
    deadline_at=200.0,
    fingerprint=b"f",
    inputs=b"\x81\xa1x\xa1\x01",
)
ENDED = replace(
    RUNNING,
    state=State.FAILED,
    finished_at=101.0,
    inputs=None,
    outputs=b"\x80",
    failure=Failure(Code.INTERNAL, "ValueError", "no good", "stage", 2, "Traceback"),
    trace=InvocationTrace("job", "w@1", 1.0, 2.0, tasks=[TaskTrace("stage", (1, 2), 1, 1.5)]),
)


def brief(entry: Entry) -> Entry:
    return replace(entry, inputs=None, outputs=None, trace=None)


def on_disk(directory: Path, *, keep: int = 1000, replace_corrupt: bool = False) -> DatabaseJournal:
    return DatabaseJournal(directory, SystemClock(), keep_finished=keep, keep_finished_s=1e12, replace=replace_corrupt)


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Journal]:
    return (lambda: MemoryJournal(1000, 10**6)) if request.param == "memory" else (lambda: on_disk(tmp_path))


async def test_what_is_accepted_and_finished_can_be_read(make: Callable[[], Journal]) -> None:
    journal = make()
    assert await journal.get("job") is None
    await journal.accept(RUNNING)
    assert await journal.get("job") == RUNNING
    journal.finish(ENDED)
    assert await journal.get("job") == ENDED
    assert [brief(entry) for entry in journal.recent(None, 10)] == [brief(ENDED)]
    await journal.forget("job")
    await journal.close()


async def test_the_newest_come_first_and_by_workflow(make: Callable[[], Journal]) -> None:
    journal = make()
    for i in range(6):
        journal.finish(replace(ENDED, id=f"i{i}", workflow=f"w{i % 2}", accepted_at=float(i), submitted=i % 3 == 0))
    assert [entry.id for entry in journal.recent(None, 3)] == ["i5", "i4", "i3"]
    await journal.forget("nobody")  # written with what came before
    assert [entry.id for entry in journal.recent("w0", 9)] == ["i4", "i2", "i0"]
    await journal.close()


async def test_a_forgotten_one_is_gone(make: Callable[[], Journal]) -> None:
    journal = make()
    await journal.accept(RUNNING)
    await journal.forget("job")
    assert await journal.get("job") is None
    await journal.close()


async def test_the_newest_version_serves_until_it_is_deleted(make: Callable[[], Journal]) -> None:
    journal = make()
    await journal.put_workflow(StoredWorkflow("w", 1, "one", 1.0))
    await journal.put_workflow(StoredWorkflow("w", 2, "two", 2.0))
    assert [s.source for s in journal.workflows() if s.serving][-1] == "two"
    await journal.delete_workflow("w")
    assert not any(s.serving for s in journal.workflows())
    await journal.close()


async def test_memory_is_bounded_and_what_runs_is_kept() -> None:
    journal = MemoryJournal(1000, 10_000)
    await journal.accept(RUNNING)
    for i in range(30):
        journal.finish(replace(ENDED, id=f"i{i}"))
    kept = [entry.id for entry in journal.recent(None, 50)]
    assert kept[0] == "i29"
    assert kept[-1] == "job"
    assert len(kept) < 10
    journal.finish(replace(ENDED, id="huge", outputs=b"x" * 20_000))
    assert await journal.get("huge") is None


async def test_everything_survives_closing(tmp_path: Path) -> None:
    journal = on_disk(tmp_path)
    await journal.put_workflow(StoredWorkflow("w", 1, "text", 1.0))
    await journal.accept(RUNNING)
    journal.finish(replace(ENDED, id="other", submitted=False))
    await journal.close()
    again = on_disk(tmp_path)
    assert again.workflows() == [StoredWorkflow("w", 1, "text", 1.0)]
    assert again.unfinished() == [RUNNING]
    assert await again.get("other") == replace(ENDED, id="other", submitted=False)
    await again.close()


async def test_whoever_asks_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    journal = on_disk(tmp_path)
    await journal.accept(RUNNING)
    journal.finish(replace(ENDED, id="gathered", submitted=False))
    disk_is_busy, disk_is_free = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        disk_is_busy.set()
        disk_is_free.wait(30.0)

    holding = asyncio.create_task(journal._submit(hold))
    await asyncio.to_thread(disk_is_busy.wait, 30.0)
    try:
        found = [await journal.get(name) for name in ("job", "gathered", "unknown")]
        assert not holding.done()
    finally:
        disk_is_free.set()
    await holding
    assert [entry and entry.id for entry in found] == ["job", "gathered", None]
    await journal.close()
    with pytest.raises(Unavailable, match="closed"):
        await journal.get("job")


async def test_an_interrupted_run_does_not_count(tmp_path: Path) -> None:
    journal = on_disk(tmp_path)
    await journal.accept(replace(RUNNING, attempts=2))
    await journal.close(["job"])
    again = on_disk(tmp_path)
    assert again.unfinished() == [replace(RUNNING, attempts=1)]
    await again.close()


async def test_many_writes_keep_their_order(tmp_path: Path) -> None:
    journal = on_disk(tmp_path)
    await asyncio.gather(*(journal.accept(replace(RUNNING, id=f"i{i}")) for i in range(200)))
    for i in range(200):
        journal.finish(replace(ENDED, id=f"i{i}"))
    await journal.close()
    again = on_disk(tmp_path)
    assert again.unfinished() == []
    assert len(again.recent(None, 500)) == 200
    await again.close()


async def test_old_records_make_room(tmp_path: Path) -> None:
    journal = on_disk(tmp_path, keep=10)
    await journal.accept(RUNNING)
    for i in range(PRUNE_EVERY):
        journal.finish(replace(ENDED, id=f"i{i}", submitted=False))
    await journal.close()
    again = on_disk(tmp_path)
    assert [entry.id for entry in again.recent(None, 500)].count("i0") == 0
    assert len(again.recent(None, 500)) == 11
    assert again.unfinished() == [RUNNING]
    await again.close()


async def test_a_failed_write_reaches_those_who_wait(tmp_path: Path) -> None:
    journal = on_disk(tmp_path)
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("DROP TABLE invocations")
    other.close()
    with pytest.raises(Unavailable, match=FILE):
        await journal.accept(RUNNING)
    await journal.close()
    assert not [thread for thread in threading.enumerate() if "journal" in thread.name]


async def test_a_directory_has_one_host(tmp_path: Path) -> None:
    journal = on_disk(tmp_path)
    with pytest.raises(FailedPrecondition, match="in use by another server"):
        on_disk(tmp_path)
    await journal.close()


async def test_a_journal_from_before_plans_is_brought_up_to_date(tmp_path: Path) -> None:
    plain = StoredWorkflow("w", 1, "source", 1.0)
    journal = on_disk(tmp_path)
    await journal.put_workflow(plain)
    await journal.close()
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("ALTER TABLE workflows DROP COLUMN plan")
        other.execute("PRAGMA user_version = 1")
    other.close()
    planned = StoredWorkflow("w", 1, "source", 1.0, plan="kind: Plan")
    for expected in (plain, planned, planned):
        journal = on_disk(tmp_path)
        assert journal.workflows() == [expected]
        await journal.put_workflow(planned)
        await journal.close()


async def test_another_schema_version_is_refused_by_name(tmp_path: Path) -> None:
    await on_disk(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(JournalUnreadable, match=r"journal\.sqlite3.*version 99"):
        on_disk(tmp_path)
    journal = on_disk(tmp_path, replace_corrupt=True)
    assert journal.workflows() == []
    await journal.close()
