"""A server of one's own: `dataflower serve` in another process, on a free port, gone when it is no longer needed."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataflower.errors import Unavailable

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_PR_SET_PDEATHSIG = 1
_TAIL = 20


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: where it listens (gRPC, and HTTP or nothing), and its process."""

    address: str
    http_url: str
    pid: int
    log: Path

    def tail(self) -> str:
        """The last lines of what it said."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL:])
        except OSError:
            return ""


@contextmanager
def serve_apart(arguments: Sequence[str] = ()) -> Iterator[Served]:
    """Start `dataflower serve ARGUMENTS` with a state directory of its own; leaving the block stops it.

    It does not share the interpreter of whoever measures it, and dies with the process that started it.

    Raises:
        Unavailable: it did not start; the message holds what it said.
    """
    with tempfile.TemporaryDirectory(prefix="dataflower-served-") as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "dataflower.cli", "serve", "--address", "127.0.0.1", "--port", "0"]
        command += ["--http-port", "0"]
        with log.open("wb") as said:
            process = subprocess.Popen(
                [*command, "--state-dir", str(Path(folder) / "state"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                bufsize=0,  # what it prints is waited for by the descriptor
                stderr=said,
                process_group=0,  # Ctrl-C is for the one who measures
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - nothing here runs threads yet
            )
        try:
            yield Served(*_doors(process, log), process.pid, log)
        finally:
            _stop(process)


def _die_with_parent() -> Callable[[], None]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork
    parent = os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def _doors(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """Where it listens: what it prints first, a line for each."""
    assert process.stdout is not None
    found = []
    for begin in ("listening on ", "HTTP on "):
        ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
        line = process.stdout.readline().decode() if ready else ""
        if not line.startswith(begin):
            said = log.read_text(errors="replace").strip()
            raise Unavailable(f"the local server did not start:\n{said or 'it said nothing'}")
        found.append(line.removeprefix(begin).split()[0])
    return found[0], found[1]


def _stop(process: subprocess.Popen[bytes]) -> None:
    for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):  # the second does not wait for running calls
        if process.poll() is None:
            process.send_signal(signum)
        try:
            process.wait(STOP_TIMEOUT_S if signum == signal.SIGKILL else STOP_TIMEOUT_S / 4)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.stdout is not None
    process.stdout.close()
