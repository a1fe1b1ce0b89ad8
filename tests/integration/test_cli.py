"""The `dataflower` command as a user has it: real processes, a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

FUNCTIONS = '''
"""Functions of the tests."""
import os
import time
from collections.abc import Iterator
from dataflower import Stream, Text, function


@function(outputs={"word": Stream(Text())})
def words(text: str) -> Iterator[str]:
    print("splitting", text)
    for word in text.split():
        yield word + " "


@function(outputs={"n": Text()})
def count(words: Stream) -> str:
    return str(sum(1 for _ in words))


def nap(seconds: float, marker: str) -> str:
    open(marker, "w").close()
    time.sleep(seconds)
    return "rested"


def crash(text: str) -> str:
    os._exit(3)
'''
GREET = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: greet}
inputs: {text: string}
slo: {e2e_ms: 50000}
stages:
  split: {function: "stock:words", inputs: {text: inputs.text}}
  count: {function: "stock:count", inputs: {words: split.word}}
outputs: {word: split.word, n: count.n}
"""
NAP = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: nap}
inputs: {seconds: float, marker: string}
stages:
  sleep: {function: "stock:nap", inputs: {seconds: inputs.seconds, marker: inputs.marker}}
outputs: {out: sleep.out}
"""
CRASH = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: crash}
inputs: {text: string}
stages:
  dies: {function: "stock:crash", inputs: {text: inputs.text}}
outputs: {out: dies.out}
"""


class Shell:
    """Runs `dataflower` in a folder with functions and workflows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "NO_COLOR": "1"}
        self.env["DATAFLOWER_WRITABLE_PATHS"] = str(folder)  # where functions leave marks
        self.servers: list[subprocess.Popen[str]] = []
        self.command = [sys.executable, "-m", "dataflower.cli"]

    def __call__(self, *args: str, input_: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *args],
            cwd=self.folder,
            env=self.env,
            input=input_,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def serve(self, *args: str) -> subprocess.Popen[str]:
        """A server that has said where it listens; later calls go there."""
        server = subprocess.Popen(
            [*self.command, "serve", "--port", "0", *args],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.servers.append(server)
        assert server.stdout is not None
        said = server.stdout.readline()
        assert said.startswith("listening on "), server.communicate()
        self.env["DATAFLOWER_SERVER"] = said.split()[-1]
        return server


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    (tmp_path / "stock.py").write_text(FUNCTIONS)
    for name, text in (("greet", GREET), ("nap", NAP), ("crash", CRASH)):
        (tmp_path / f"{name}.yaml").write_text(text)
    shell = Shell(tmp_path)
    yield shell
    for server in shell.servers:
        if server.poll() is None:
            server.kill()
        server.communicate()


def stop(server: subprocess.Popen[str]) -> tuple[int, str]:
    server.send_signal(signal.SIGTERM)
    _, said = server.communicate(timeout=120)
    return server.returncode, said


def test_run_shows_results_timeline_and_verdict(shell: Shell) -> None:
    done = shell("run", "greet.yaml", "text=a b c")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "word: a b c "
    assert done.stdout.splitlines()[1].split() == ["n", "3"]
    for expected in ("splitting a b c", "split", "count", "cold", "SLO e2e"):
        assert expected in done.stderr


def test_what_init_writes_runs(shell: Shell) -> None:
    assert shell("init", "first-try", "--dir", "new").returncode == 0
    done = shell("run", "new/first-try.yaml", "-o", "json")
    assert done.returncode == 0, done.stderr
    words = json.loads(done.stdout)["outputs"]["words"]
    assert list(words.items())[:2] == [("to", 2), ("be", 2)]
    assert words["question"] == 1
    again = shell("run", "new/first-try.yaml", "text=one\none two", "-q")
    assert again.stdout.split(maxsplit=1) == ["words", '{"one": 2, "two": 1}\n']


def test_run_as_json_carries_the_record_points(shell: Shell) -> None:
    data = json.loads(shell("run", "greet.yaml", "text=@-", "-o", "json", "--trace", input_="x y").stdout)
    assert data["outputs"] == {"word": ["x ", "y "], "n": "2"}
    task = data["trace"]["tasks"][0]
    assert task["queued_ms"] <= task["started_ms"] <= task["ended_ms"] <= task["sent_ms"]


def test_a_function_that_kills_its_process_is_an_error_with_its_stage(shell: Shell) -> None:
    done = shell("run", "crash.yaml", "text=x")
    assert done.returncode == 1
    assert "ContainerCrashed in stage 'dies'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_a_word_and_leaves_nothing(shell: Shell, number: signal.Signals) -> None:
    marker, scratch = shell.folder / "started", shell.folder / "scratch"
    scratch.mkdir()
    running = subprocess.Popen(
        [*shell.command, "run", "nap.yaml", "seconds=600", f"marker={marker}"],
        cwd=shell.folder,
        env={**shell.env, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(marker)
    running.send_signal(number)
    _, said = running.communicate(timeout=120)
    assert (running.returncode, said) == (130, "interrupted\n")
    assert list(scratch.iterdir()) == []


def test_a_server_takes_workflows_runs_them_and_tells_about_them(shell: Shell) -> None:
    server = shell.serve()
    assert shell("apply", "greet.yaml").returncode == 0
    called = shell("invoke", "greet", "text=x y z", "--id", "call-1")
    assert called.stdout.splitlines()[0] == "word: x y z "
    drawn = shell("trace", "call-1")
    assert [line.split()[0] for line in drawn.stdout.splitlines()[1:3]] == ["split", "count"]
    assert "call-1" in shell("ls", "greet").stdout
    assert json.loads(shell("status", "call-1", "-o", "json").stdout)["state"] == "succeeded"
    assert "splitting x y z" in shell("logs", "greet", "--stage", "split").stdout
    silent = shell("logs", "greet", "--stage", "count")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "greet has printed nothing\n")
    assert shell("rm", "greet").returncode == 0
    assert shell("ls", "-o", "json").stdout == "[]\n"
    assert stop(server)[0] == 0


def test_workflows_and_submissions_survive_a_restart(shell: Shell) -> None:
    first = shell.serve("--workflow", "greet.yaml")
    assert shell("invoke", "greet", "text=1 2", "--async", "--id", "job").stdout == "job\n"
    assert shell("status", "job", "--wait").returncode == 0
    assert stop(first)[0] == 0
    shell.serve()
    assert json.loads(shell("status", "job", "-o", "json").stdout)["outputs"]["n"] == "2"
    assert shell("invoke", "greet", "text=1", "-q").returncode == 0


def test_a_broken_file_is_refused_with_its_places(shell: Shell) -> None:
    server = shell.serve()
    (shell.folder / "bad.yaml").write_text(GREET.replace("split.word}}", "splt.word}}").replace("slo:", "slow:"))
    done = shell("apply", "bad.yaml")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("bad.yaml:6:1: ")
    assert any(line.startswith("bad.yaml:9:") and "did you mean 'split" in line for line in lines)
    assert server.poll() is None


def test_a_missing_module_names_where_it_was_looked_for(shell: Shell) -> None:
    shell.serve("--code-path", ".")
    (shell.folder / "lost.yaml").write_text(GREET.replace("stock:", "nowhere:"))
    hint = f"looked for in {shell.folder} and on sys.path; "
    for verb, option in (("validate", "--code-path"), ("run", "--code-path"), ("apply", "`serve --code-path`")):
        done = shell(verb, "lost.yaml")
        assert done.returncode == 1
        assert f"no module 'nowhere' ({hint}{option} adds a directory)" in done.stdout + done.stderr
    several = shell("apply", "greet.yaml", "lost.yaml")
    assert several.stderr.splitlines()[0] == "lost.yaml was refused; applied before it: greet@1"


def test_a_code_path_that_is_not_there_is_refused(shell: Shell) -> None:
    done = shell("serve", "--port", "0", "--code-path", "nowhere")
    assert done.returncode == 2
    assert "no directory 'nowhere' to find functions in" in done.stderr


def test_sigterm_lets_running_calls_end(shell: Shell) -> None:
    server = shell.serve("--workflow", "nap.yaml")
    marker = shell.folder / "started"
    call = subprocess.Popen(
        [*shell.command, "invoke", "nap", "seconds=1.5", f"marker={marker}", "-q"],
        cwd=shell.folder,
        env=shell.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    _wait_for(marker)
    code, said = stop(server)
    assert call.communicate(timeout=120)[0].split() == ["out", "rested"]
    assert code == 0
    assert "draining" in said


def test_a_second_signal_stops_at_once(shell: Shell) -> None:
    shell.env["DATAFLOWER_DRAIN_TIMEOUT_S"] = "600"
    server = shell.serve("--workflow", "nap.yaml")
    marker = shell.folder / "started"
    shell("invoke", "nap", "seconds=600", f"marker={marker}", "--async")
    _wait_for(marker)
    server.send_signal(signal.SIGTERM)
    assert server.stderr is not None
    for line in server.stderr:
        if "draining" in line:
            break
    server.send_signal(signal.SIGTERM)
    _, said = server.communicate(timeout=120)
    assert "stopping at once" in said


def test_logs_are_those_of_the_server_that_is_asked(shell: Shell) -> None:
    shell.serve("--workflow", "greet.yaml", "--state-dir", "elsewhere")
    assert shell("invoke", "greet", "text=a b", "-q").returncode == 0
    assert "splitting a b" in shell("logs", "greet").stdout
    nothing = shell("logs", "nap")
    assert nothing.returncode == 1
    assert f"looked in {shell.folder}/elsewhere/logs" in nothing.stderr


def test_a_taken_port_is_said_clearly(shell: Shell) -> None:
    shell.serve()
    port = shell.env["DATAFLOWER_SERVER"].rpartition(":")[2]
    done = shell("serve", "--port", port, "--state-dir", "other")
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr
    assert "--port 0" in done.stderr
    assert "GRPC_VERBOSITY" not in done.stderr
    assert "Traceback" not in done.stderr


def test_http_is_there_unless_it_is_not_wanted(shell: Shell) -> None:
    server = shell.serve("--workflow", "greet.yaml")
    assert server.stdout is not None
    url = server.stdout.readline().removeprefix("HTTP on ").split()[0]
    with urllib.request.urlopen(f"{url}/readyz", timeout=60) as answer:
        assert json.loads(answer.read()) == {"status": "ready"}
    with urllib.request.urlopen(f"{url}/v1/workflows", timeout=60) as answer:
        assert [workflow["name"] for workflow in json.loads(answer.read())["workflows"]] == ["greet"]
    done = shell("serve", "--port", "0", "--http-port", url.rpartition(":")[2], "--state-dir", "other")
    assert (done.returncode, "--http-port 0 picks a free port" in done.stderr) == (1, True)
    done = shell("serve", "--port", "0", "--http-port", "soon")
    assert (done.returncode, "--http-port: http_port: expected a whole number" in done.stderr) == (1, True)
    server.send_signal(signal.SIGTERM)
    assert server.wait(120) == 0
    without = shell.serve("--http-port", "none")
    without.send_signal(signal.SIGTERM)
    assert without.stdout is not None
    assert without.stdout.read() == ""


def test_a_locked_state_directory_is_said_clearly(shell: Shell) -> None:
    server = shell.serve()
    done = shell("serve", "--port", "0")
    assert done.returncode == 1
    assert f"is in use by another server (pid {server.pid}); stop it or choose another with --state-dir" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["stock.py", "stock.py/state", "/proc/foo"])
def test_a_state_directory_that_can_not_be_is_said_with_its_option(shell: Shell, place: str) -> None:
    done = shell("serve", "--port", "0", "--state-dir", place)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: the state directory {shell.folder / place} can't be used: ")
    assert "--state-dir" in line


def _wait_for(marker: Path) -> None:
    """Until a function has made its marker: told by inotify, with the test's own timeout as the limit."""
    from dataflower.cli.follow import _watch

    watch = _watch({marker.parent})
    try:
        while not marker.exists():
            os.read(watch, 4096)
    finally:
        os.close(watch)
