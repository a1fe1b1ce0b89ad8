"""The process tree that benches measure and stop: all below a process, parents first, nobody else."""

from __future__ import annotations

import os
import subprocess
import sys

from bench.processes import cpu_seconds, descendants

FAMILY = """
import os, subprocess, sys
end = sum(range(3_000_000))
child = subprocess.Popen([sys.executable, "-c", "import os; print(os.getpid(), flush=True); input()"])
input()
"""


def test_descendants_are_all_below_a_process_and_parents_come_first() -> None:
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert descendants(process.pid) == [grandchild]
        everybody = descendants(os.getpid())
        assert everybody.index(process.pid) < everybody.index(grandchild)
        assert os.getpid() not in everybody
        assert cpu_seconds(process.pid) >= cpu_seconds(grandchild)
        assert cpu_seconds(process.pid) > 0
        process.communicate(b"\n\n")
    assert descendants(process.pid) == []
    assert cpu_seconds(process.pid) == 0.0
