"""How much later than the runner does a client of OpenAI's API see the first token?

The server is `dataflower serve` with SmolLM2 in a process of its own; the client, another, streams a chat over a kept
connection and notes when the first chunk with text is there. From that the runner's own time to its first token is
taken away, as the trace of the same invocation has it (start of the stage's code to its first output). What is left is
everything between the two: HTTP both ways, the host, the dispatch, and the way into and out of the container.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from bench.engine import ROOT
from bench.report import Report, arguments, finish
from functions import assets

CHAT = ROOT / "workflows" / "chat.yaml"
MODEL = "smollm2"
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
    "Write a line about rain.",
)


@contextmanager
def server() -> Iterator[str]:
    """`dataflower serve` on free ports; gives the HTTP URL."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dataflower.cli", "serve", "--port", "0", "--state-dir", folder]
        command += ["--workflow", str(CHAT), "--code-path", str(ROOT)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ))
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.stdout.readline().split()[2]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class Client:
    """One kept connection."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)

    def first_token_ms(self, question: str, tokens: int) -> tuple[float, str]:
        """(milliseconds to the first chunk with text, invocation id) of a streamed chat, read to its end."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0}
        data = json.dumps({**body, "max_tokens": tokens})
        start, first = time.perf_counter(), 0.0
        self._connection.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())
        while line := answer.readline():
            if not first and line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                first = time.perf_counter()
        return (first - start) * 1e3, answer.headers["x-invocation-id"]

    def runner_ms(self, invocation: str) -> float:
        """Milliseconds from the start of the stage's code to its first output."""
        self._connection.request("GET", f"/v1/invocations/{invocation}/trace")
        trace: dict[str, Any] = json.loads(self._connection.getresponse().read())
        (task,) = trace["tasks"]
        return (task["first_output"] - task["started"]) * 1e3


def samples(rounds: int) -> tuple[list[float], list[float]]:
    """(what the client waits beyond the runner, what the runner takes), in milliseconds."""
    beyond, own = [], []
    with server() as url:
        client = Client(url)
        for question in QUESTIONS:
            client.first_token_ms(question, 4)  # the container starts, the model is loaded, its kernels are chosen
        for i in range(rounds):
            seen, invocation = client.first_token_ms(QUESTIONS[i % len(QUESTIONS)], 4)
            own.append(client.runner_ms(invocation))
            beyond.append(seen - own[-1])
    return beyond, own


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("sse")
    question = "first token by SSE at the client, beyond the runner's own TTFT"
    try:
        assets.find(assets.SMOLLM2)
    except FileNotFoundError as error:
        report.add("sse_ms", question, None, unit="ms", at_most=10, missing=str(error))
    else:
        beyond, own = samples(8 if options.quick else 300)
        report.add("sse_ms", question, statistics.median(beyond), unit="ms", at_most=10, samples=beyond)
        report.add("runner_ttft_ms", "the runner's own, for comparison", statistics.median(own), unit="ms", samples=own)
    finish(report, options)


if __name__ == "__main__":
    main()
