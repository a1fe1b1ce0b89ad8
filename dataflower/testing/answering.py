"""A process that answers each line that it is sent by one of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


class Answering:
    """Runs a program. Its owner must `close` it; it ends when its input does."""

    def __init__(self, program: str, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
        """`program`: Python; `descriptors`: what it inherits, still the caller's."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            text=True,
        )

    def say(self, line: str = "read") -> Any:
        """What it answers; None if it has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else None

    def close(self) -> None:
        """End it, and wait for that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
