"""Rivals beside us in one run: started once, measured in turn, and stopped by signal while it is not their turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from bench.engine import ROOT, pin
from bench.processes import descendants

PEERS = Path(os.environ.get("BENCH_PEERS", ROOT / ".venv-peers")) / "bin" / "python"
MISSING = "not installed: make bench-peers"


class RivalError(Exception):
    """The rival can't be measured, and why."""


class Rival:
    """A process of `bench.peers`. Between requests it and its children are stopped, so that nobody's idling counts."""

    def __init__(self, module: str, *arguments: str, ours: bool = False, core: int | None = None) -> None:
        """`ours`: it runs in this environment, not in that of the rivals. `core`: pin it and its children to one."""
        self.versions: dict[str, str] = {}
        python = Path(sys.executable) if ours else PEERS
        if not python.exists():
            raise RivalError(MISSING)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        command = [str(python), "-m", f"bench.peers.{module}", *arguments]
        allowed = pin(core)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT
            )
        finally:
            os.sched_setaffinity(0, allowed)
        try:
            self.versions = self._answer()["versions"]
            self._stop()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process that answers."""
        return self._process.pid

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Let it run for one measurement; gives the answer. RivalError with its words if it fails."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
                self._process.stdin.flush()
            return self._answer()
        finally:
            self._stop()

    def close(self) -> None:
        """End it and all its children."""
        family = descendants(self._process.pid)
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().rpartition("\n")[2]
            raise RivalError(f"it ended: {last}" if last else "it ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RivalError(str(answer["error"]))
        return answer

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # it has come to a halt, or ended

    def _signal(self, number: int) -> None:
        for process in [self._process.pid, *descendants(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


class Field:
    """Several rivals by name. What can't be measured is kept as a reason, and figures made of it are missing."""

    def __init__(self, wanted: bool = True) -> None:
        """`wanted` False: none takes part."""
        self.versions: dict[str, str] = {}
        self._wanted = wanted
        self._rivals: dict[str, Rival] = {}
        self._reasons: dict[str, str] = {}
        self._samples: dict[str, list[float]] = {}

    def add(self, name: str, module: str, *arguments: str, ours: bool = False, core: int | None = None) -> None:
        """Start one."""
        if not self._wanted and not ours:
            self._reasons[name] = "left out (--alone)"
            return
        try:
            self._rivals[name] = Rival(module, *arguments, ours=ours, core=core)
            self.versions |= self._rivals[name].versions
        except RivalError as error:
            self._reasons[name] = f"{name}: {error}"

    def measure(self, key: str, name: str, do: str, **request: Any) -> None:
        """One measurement of a rival; its samples (seconds; of a rate: per second) go to those of `key`."""
        rival = self._rivals.get(name)
        if rival is None or key in self._reasons:
            self._reasons.setdefault(key, self._reasons.get(name, "not measured"))
            return
        try:
            answer = rival.ask(do, **request)
        except RivalError as error:
            self._reasons[key] = f"{name}: {error}"
            return
        self._samples.setdefault(key, []).extend(answer["samples"] if "samples" in answer else [answer["rate"]])

    def samples(self, key: str, factor: float = 1.0) -> list[float]:
        """All samples of a key, times `factor`."""
        return [sample * factor for sample in self._samples.get(key, ())]

    def median(self, key: str) -> float | None:
        """Of a key, or None."""
        return statistics.median(self._samples[key]) if key in self._samples else None

    def reason(self, *keys: str) -> str:
        """Why one of these was not measured; empty if all were."""
        return next((self._reasons.get(key, "not measured") for key in keys if key not in self._samples), "")

    def close(self) -> None:
        """End all."""
        for rival in self._rivals.values():
            rival.close()
        self._rivals.clear()


@contextlib.contextmanager
def field(wanted: bool = True) -> Iterator[Field]:
    """An empty field, ended at the end."""
    made = Field(wanted)
    try:
        yield made
    finally:
        made.close()
