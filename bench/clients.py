"""Do other people's clients of OpenAI's API work with `dataflower serve` as they are, and what do they measure?

The server is `dataflower serve` with `workflows/chat.yaml` (SmolLM2-135M, greedy) in a process of its own. `llm-comply`
checks the protocol: 8 of its 9 chat checks are things that this model can do, the ninth wants it to look at an image.
`aiperf` and the load generator of vllm (`vllm bench serve`) each send the same kind of load: streamed chats of 64
random tokens, 32 tokens of answer whatever they are, eight at a time. They live in environments of their own, named by
AIPERF_PYTHON and VLLM_PYTHON (their interpreters); who is not named is missing. Figures are theirs, not ours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.engine import ROOT
from bench.report import Report, arguments, finish
from functions import assets

MODEL = "smollm2-o1"
"""Under this name llm-comply does not skip its check of reasoning parameters."""
CHECKS, ABLE = 9, 8
PROMPT, ANSWER, TOGETHER = 64, 32, 8
VLLM = "import argparse; from vllm.benchmarks import serve as s; p = argparse.ArgumentParser(); s.add_cli_args(p); "
"""The distribution for CPUs has another name than the one that its command `vllm` asks for."""
FIGURES = {
    "ok": "share of requests that were answered",
    "tokens": "tokens of an answer, of 32 asked for",
    "tok_s": "tokens a second, all together",
    "ttft_ms": "time to the first token, median",
    "itl_ms": "time between tokens, median",
}


class Failed(Exception):
    """A client gave up; its last words."""


@contextmanager
def server(scratch: Path) -> Iterator[str]:
    """`dataflower serve` on free ports; gives the HTTP URL."""
    text = (ROOT / "workflows" / "chat.yaml").read_text()
    file = scratch / "chat.yaml"
    file.write_text(text.replace("temperature: 1.0", "temperature: 0.0").replace("name: smollm2\n", f"name: {MODEL}\n"))
    command = [sys.executable, "-m", "dataflower.cli", "serve", "--port", "0", "--state-dir", str(scratch / "state")]
    command += ["--workflow", str(file), "--code-path", str(ROOT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.stdout.readline().split()[2]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def comply(url: str) -> tuple[float, list[str]]:
    """How many of llm-comply's chat checks pass, and which do not."""
    command = [str(Path(sys.executable).with_name("llm-comply")), "--format", "openai-chat", "-u", f"{url}/v1"]
    done = run([*command, "-m", MODEL, "--json", "-k", "none", "--timeout", "120"], fine=(0, 1))
    results = json.loads(done)["results"]
    return sum(r["status"] == "passed" for r in results), [r["id"] for r in results if r["status"] != "passed"]


def aiperf(url: str, requests: int, scratch: Path) -> dict[str, float]:
    """Its figures. It takes a tokenizer by a relative path alone."""
    shutil.copytree(assets.find(assets.SMOLLM2), scratch / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    command = [str(Path(os.environ["AIPERF_PYTHON"]).with_name("aiperf")), "profile", "-m", MODEL, "-u", url]
    command += ["--endpoint-type", "chat", "--streaming", "--tokenizer", "tokenizer", "--ui", "none"]
    command += ["--concurrency", str(TOGETHER), "--request-count", str(requests), "--use-server-token-count"]
    command += ["--isl", str(PROMPT), "--osl", str(ANSWER), "--artifact-dir", str(scratch / "aiperf")]
    run([*command, "--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{ANSWER}"], cwd=scratch)
    (file,) = (scratch / "aiperf").rglob("profile_export_aiperf.json")
    said = json.loads(file.read_text())
    return {
        "ok": (said["request_count"]["avg"] if not said["error_summary"] else 0) / requests,
        "tokens": said["output_sequence_length"]["avg"],
        "tok_s": said["output_token_throughput"]["avg"],
        "ttft_ms": said["time_to_first_token"]["p50"],
        "itl_ms": said["inter_token_latency"]["p50"],
    }


def vllm(url: str, requests: int, scratch: Path) -> dict[str, float]:
    """The figures of its load generator."""
    command = [os.environ["VLLM_PYTHON"], "-c", VLLM + "s.main(p.parse_args())", "--backend", "openai-chat"]
    command += ["--base-url", url, "--endpoint", "/v1/chat/completions", "--model", MODEL, "--dataset-name", "random"]
    command += ["--tokenizer", str(assets.find(assets.SMOLLM2)), "--random-input-len", str(PROMPT)]
    command += ["--random-output-len", str(ANSWER), "--num-prompts", str(requests), "--ignore-eos"]
    command += ["--max-concurrency", str(TOGETHER), "--save-result", "--result-dir", str(scratch)]
    run([*command, "--result-filename", "vllm.json"], env={"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})
    said = json.loads((scratch / "vllm.json").read_text())
    return {
        "ok": said["completed"] / requests,
        "tokens": said["total_output_tokens"] / max(1, said["completed"]),
        "tok_s": said["output_throughput"],
        "ttft_ms": said["median_ttft_ms"],
        "itl_ms": said["median_itl_ms"],
    }


def run(
    command: list[str], *, fine: tuple[int, ...] = (0,), cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """What it printed. Raises Failed if it ends with another code than those."""
    given = {**os.environ, **(env or {})}
    given.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode not in fine:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Failed(f"{Path(command[0]).name} ended with {done.returncode}: {words[-1] if words else ''}")
    return done.stdout


def tell(what: str) -> None:
    """On stderr, at once: figures come at the end."""
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    options = arguments((__doc__ or "").splitlines()[0])
    report = Report("clients")
    requests = 16 if options.quick else 64
    with tempfile.TemporaryDirectory(prefix="dataflower-clients-") as folder, server(Path(folder)) as url:
        tell("llm-comply: its checks")
        passed, failed = comply(url)
        tell(f"llm-comply: {passed:g} of {CHECKS} pass")
        question = f"checks of llm-comply that pass, of {CHECKS}" + (f" (not: {', '.join(failed)})" if failed else "")
        report.add("comply_passed", question, passed, at_least=ABLE)
        for name, variable, client in (("aiperf", "AIPERF_PYTHON", aiperf), ("vllm", "VLLM_PYTHON", vllm)):
            found: dict[str, Any] = {}
            missing = f"not installed: name its interpreter in {variable}"
            if os.environ.get(variable) and not options.alone:
                tell(f"{name}: {requests} requests, {TOGETHER} at a time")
                try:
                    found = client(url, requests, Path(folder))
                except (Failed, KeyError, ValueError) as error:
                    missing = str(error)
            tell(f"{name}: {found['tok_s']:.4g} tokens a second" if found else f"{name}: {missing}")
            for key, question in FIGURES.items():
                least = {"ok": 1.0, "tokens": float(ANSWER)}.get(key)
                report.add(f"{name}_{key}", f"{name}: {question}", found.get(key), at_least=least, missing=missing)
    finish(report, options)


if __name__ == "__main__":
    main()
