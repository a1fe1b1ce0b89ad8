"""A model from its source onto the disk, and into memory at the same time: each chunk goes all the way when it comes.

What has come is noted chunk by chunk, with its hash: after a break, be it of the network, the power, or a signal, the
next attempt reads these chunks from the disk, checks them, and fetches the rest. The folder gets its name when it is
complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataflower.checkpoint import manifest as manifests
from dataflower.checkpoint.digest import CHUNK_BYTES, chunk_hash
from dataflower.checkpoint.format import LENGTH_BYTES, Header, check_index, header_length, parse_header
from dataflower.checkpoint.layout import place
from dataflower.checkpoint.loader import Arrival, Job, Progress, ignore, is_index, jobs
from dataflower.checkpoint.manifest import META, FileEntry, Manifest
from dataflower.checkpoint.reader import Crew
from dataflower.checkpoint.region import Owned
from dataflower.checkpoint.sources import RemoteFile, Source
from dataflower.errors import DataflowerError, ResourceExhausted, Unavailable, WeightsInvalid

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class _File:
    """A file on its way: its descriptor, hashes of the chunks that are there, and how far SHA-256 has got."""

    remote: RemoteFile
    fd: int
    hashes: list[bytes]
    lock: threading.Lock = field(default_factory=threading.Lock)
    state: hashlib._Hash = field(default_factory=hashlib.sha256)
    next: int = 0

    def advance(self, *, wait: bool = False) -> None:
        """Digest what follows without a gap. One thread does; the others leave it to that one."""
        if not self.lock.acquire(blocking=wait):
            return
        try:
            while self.next < len(self.hashes) and self.hashes[self.next]:
                offset = self.next * CHUNK_BYTES
                self.state.update(os.pread(self.fd, min(CHUNK_BYTES, self.remote.nbytes - offset), offset))
                self.next += 1
        finally:
            self.lock.release()


@dataclass(slots=True)
class Fetch:
    """One model on its way from `source` to `target` (a folder that is not there, or is to be replaced).

    `partial`: the folder in which it gathers. `owned`: memory that is filled on the way, laid out by `layout.place`.
    """

    source: Source
    files: Sequence[RemoteFile]
    partial: Path
    target: Path
    owned: Owned | None = None
    progress: Progress = ignore
    threads: int = 4
    stop: Callable[[], bool] = lambda: False
    arrival: Arrival = field(default_factory=Arrival)
    _open: dict[str, _File] = field(default_factory=dict)
    _journal: int = -1

    def run(self) -> Manifest:
        """Fetch and check everything; blocks. `commit` makes it a model of the store.

        Raises:
            Unavailable: the source can't be reached; what has come is kept.
            ResourceExhausted: the disk is full; what has come is kept.
            WeightsInvalid: what came is not what the source says it is; that file is thrown away.
        """
        placed = place((file.name, file.nbytes) for file in self.files)
        try:
            earlier = self._prepare()
            work = jobs(placed, self.arrival)
            streamed = {f.name for f in self.files if f.nbytes and not self.source.has_ranges(f.name)}
            kept = [job for job in work if (job.place.name, job.offset // CHUNK_BYTES) in earlier]
            known = {job.number for job in kept}
            wanted = [job for job in work if job.number not in known]
            missing: list[Job] = []
            recall: Crew[Job] = Crew(lambda job: self._recall(job, earlier, missing), self.threads, self.stop)
            recall.run(kept)
            wanted = sorted((*wanted, *missing), key=lambda job: job.number)
            tasks: list[Callable[[], None]] = [
                self._streaming([job for job in work if job.place.name == name], wanted) for name in sorted(streamed)
            ]
            tasks += [self._ranging(job) for job in wanted if job.place.name not in streamed]
            crew: Crew[Callable[[], None]] = Crew(lambda task: task(), self.threads, self.stop)
            crew.run(tasks)
            return self._finish()
        except OSError as error:
            raise self._explain(error) from error
        finally:
            for file in self._open.values():
                os.close(file.fd)
            self._open.clear()
            if self._journal >= 0:
                os.close(self._journal)
                self._journal = -1

    def commit(self, manifest: Manifest) -> None:
        """Give the folder its name, durably, in place of what had it before."""
        try:
            for file in manifest.files:
                _sync(self.partial / file.name)
            manifests.write(self.partial / META / "manifest.json", manifest)
            (self.partial / "progress").unlink()
            old = self.target.with_name(f".old-{self.target.name}")
            shutil.rmtree(old, ignore_errors=True)
            pinned = (self.target / META / "pinned").exists()
            with contextlib.suppress(FileNotFoundError):
                self.target.rename(old)
            self.partial.rename(self.target)
            if pinned:
                (self.target / META / "pinned").touch()
            shutil.rmtree(old, ignore_errors=True)
            _sync(self.target.parent)
        except OSError as error:
            raise self._explain(error) from error

    # --- chunks --------------------------------------------------------------------------------------------------

    def _prepare(self) -> dict[tuple[str, int], bytes]:
        """Open everything; gives the hashes of the chunks that an earlier attempt has left."""
        said = json.dumps([self.source.url, [[f.name, f.nbytes, f.sha256, f.tag] for f in self.files]])
        journal = self.partial / "progress"
        lines: list[str] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            lines = journal.read_text(errors="replace").splitlines()
        if not lines or lines[0] != said:  # another content, or nothing
            shutil.rmtree(self.partial, ignore_errors=True)
            lines = []
        self.partial.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        for file in self.files:
            fd = os.open(self.partial / file.name, flags, 0o644)
            self._open[file.name] = _File(file, fd, [b""] * len(range(0, file.nbytes, CHUNK_BYTES)))
        self._journal = os.open(journal, flags | os.O_APPEND, 0o644)
        if not lines:
            os.ftruncate(self._journal, 0)
            os.write(self._journal, said.encode() + b"\n")
        earlier: dict[tuple[str, int], bytes] = {}
        for line in lines[1:]:
            with contextlib.suppress(ValueError):  # the last line may be cut off
                number, digest, name = line.split(" ", 2)
                if len(digest) == 32 and name in self._open:
                    earlier[name, int(number)] = bytes.fromhex(digest)
        return earlier

    def _recall(self, job: Job, earlier: dict[tuple[str, int], bytes], missing: list[Job]) -> None:
        """A chunk that should be on the disk; if it isn't, it is `missing`."""
        file = self._open[job.place.name]
        data = os.pread(file.fd, job.nbytes, job.offset)
        number = job.offset // CHUNK_BYTES
        if len(data) != job.nbytes or chunk_hash([data]) != earlier[job.place.name, number]:
            missing.append(job)
            return
        self._arrived(file, job, data, earlier[job.place.name, number])

    def _ranging(self, job: Job) -> Callable[[], None]:
        return lambda: self._keep(job, self.source.read(job.place.name, job.offset, job.nbytes))

    def _streaming(self, work: Sequence[Job], wanted: Sequence[Job]) -> Callable[[], None]:
        """A source without ranges gives the file from its beginning; what is there already is passed over."""
        needed = {job.number for job in wanted}

        def run() -> None:
            last = max((job.number for job in work if job.number in needed), default=-1)
            todo = [job for job in work if job.number <= last]
            for job, data in zip(todo, self.source.stream(work[0].place.name, [j.nbytes for j in todo]), strict=True):
                if self.stop():
                    return
                if job.number in needed:
                    self._keep(job, data)

        return run

    def _keep(self, job: Job, data: bytes) -> None:
        file = self._open[job.place.name]
        rest = memoryview(data)
        at = job.offset
        while rest:
            count = os.pwrite(file.fd, rest, at)
            at += count
            rest = rest[count:]
        digest = chunk_hash([data])
        os.write(self._journal, f"{job.offset // CHUNK_BYTES} {digest.hex()} {job.place.name}\n".encode())
        self._arrived(file, job, data, digest)

    def _arrived(self, file: _File, job: Job, data: bytes, digest: bytes) -> None:
        if self.owned is not None:
            at = 0
            for view in self.owned.views(job.place.offset + job.offset, job.nbytes):
                view[:] = data[at : at + len(view)]
                at += len(view)
        file.hashes[job.offset // CHUNK_BYTES] = digest
        self.arrival.mark(job.number, job.nbytes)
        self.progress(job.nbytes)
        file.advance()

    # --- the end ---------------------------------------------------------------------------------------------------

    def _finish(self) -> Manifest:
        entries = []
        headers: dict[str, Header] = {}
        if not self.stop() and tuple(self.source.listing()) != tuple(self.files):
            shutil.rmtree(self.partial, ignore_errors=True)
            raise Unavailable(f"{self.source.url} changed while it was fetched; ask again")
        for file in self._open.values():
            file.advance(wait=True)
            if file.next < len(file.hashes):
                raise DataflowerError("the fetch was stopped")
            sha256, remote = file.state.hexdigest(), file.remote
            if remote.sha256 and remote.sha256 != sha256:
                self._discard(remote.name)
                raise WeightsInvalid(
                    f"{remote.name} from {self.source.url}: its SHA-256 is {sha256}, the source says {remote.sha256}; "
                    "it was thrown away, fetch it again"
                )
            if remote.name.endswith(".safetensors"):
                headers[remote.name] = self._check(file)
            entries.append(FileEntry(remote.name, remote.nbytes, sha256, b"".join(file.hashes).hex()))
        for name in filter(is_index, self._open):
            check_index((self.partial / name).read_bytes(), headers, f"{self.source.url}/{name}")
        return Manifest(self.target.name, self.source.url, tuple(entries))

    def _check(self, file: _File) -> Header:
        name, nbytes = file.remote.name, file.remote.nbytes
        try:
            length = header_length(os.pread(file.fd, LENGTH_BYTES, 0), nbytes, name)
            return parse_header(os.pread(file.fd, LENGTH_BYTES + length, 0), nbytes, name)
        except WeightsInvalid as error:
            self._discard(name)
            raise WeightsInvalid(f"{error.message} (it came like this from {self.source.url})") from error

    def _discard(self, name: str) -> None:
        """What came of a file is of no use: the next attempt fetches it anew."""
        journal = self.partial / "progress"
        kept = [line for line in journal.read_text().splitlines() if not line.endswith(f" {name}")]
        manifests.write_atomically(journal, ("\n".join(kept) + "\n").encode())
        (self.partial / name).unlink(missing_ok=True)

    def _explain(self, error: OSError) -> DataflowerError | OSError:
        if error.errno not in _NO_ROOM:
            return error
        total = sum(file.nbytes for file in self.files)
        free = shutil.disk_usage(self.partial.parent).free
        return ResourceExhausted(
            f"no room on the disk for {self.target.name}: {total / 2**20:.0f} MiB in all, {free / 2**20:.0f} MiB free "
            f"in {self.partial.parent}. What has come is kept; make room (`dataflower models rm`) and ask again"
        )


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
