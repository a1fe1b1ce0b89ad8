"""Two servers that know each other, as people start them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import workflows_for_tests as w

pytestmark = pytest.mark.slow

WORKFLOW = """\
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: two-hosts}
inputs: {x: any}
stages:
  here: {function: 'functions_for_tests:double', inputs: {x: inputs.x}}
  there: {function: 'functions_for_tests:pid', inputs: {x: here.out}, resources: {host: b}, isolation: process}
outputs: {x: here.out, pid: there.out}
"""
COMMAND = (sys.executable, "-P", "-m", "dataflower.cli")


@contextmanager
def server(tmp_path: Path, name: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`dataflower serve`, and what it said until it listened."""
    environment = {**os.environ, "DATAFLOWER_PEER_TOKEN": "of this test", "DATAFLOWER_HOST_NAME": name}
    command = (*COMMAND, "serve", "--port", "0", "--http-port", "none", "--state-dir", str(tmp_path / name), *arguments)
    process = subprocess.Popen(
        (*command, "--code-path", *w.CODE_PATH),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(2 if "--peer-port" in arguments else 1)]
        yield process, lines
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()


def ask(address: str, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        (*COMMAND, *arguments, "--server", address, "-o", "json"), check=True, capture_output=True, text=True
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_one_server_runs_a_stage_for_another(tmp_path: Path) -> None:
    file = tmp_path / "two-hosts.yaml"
    file.write_text(WORKFLOW)
    with server(tmp_path, "b", "--peer-port", "0") as (lender, said):
        port = re.search(r"other hosts come in on 127\.0\.0\.1:(\d+)", "".join(said))
        assert port is not None
        peer = f"b=127.0.0.1:{port.group(1)}"
        with server(tmp_path, "a", "--peer", peer, "--workflow", str(file)) as (_, told):
            address = told[0].split()[-1]
            answer = ask(address, "invoke", "two-hosts", "x=21")["outputs"]
            assert answer["x"] == 42
            parent = Path(f"/proc/{answer['pid']}/status").read_text()
            assert "PPid" in parent
            (host,) = ask(address, "status")["peers"]  # type: ignore[misc]
            assert (host["name"], host["state"], host["containers"]) == ("b", "connected", 1)
            table = subprocess.run(
                (*COMMAND, "status", "--server", address), capture_output=True, text=True, check=True
            )
            assert "connected" in table.stdout
            lender.kill()
            lender.wait()
            failed = subprocess.run(
                (*COMMAND, "invoke", "two-hosts", "x=1", "--server", address),
                capture_output=True,
                text=True,
                check=False,
            )
            assert failed.returncode == 1
            assert "host 'b'" in failed.stderr
