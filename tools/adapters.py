"""Train the two LoRA adapters that LLM examples and tests use: `python -m tools.adapters` (minutes, once).

    sentiment   answers "positive" or "negative" to a review
    contacts    puts the contact in a sentence into JSON

Rank 8 on the query and value projections of SmolLM2-135M-Instruct. Each lands in the cache by one rename, with its
accuracy on held-out rows before and after in `accuracy.json`; a second run returns at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from functions import assets
from tools.adapter_data import Lesson, Row, contacts, sentiment

LESSONS = {"sentiment": sentiment, "contacts": contacts}
BATCH = 8
RATE = 1e-3
RANK, ALPHA = 8, 16
ACCURACY = "accuracy.json"


def main() -> int:
    """Train what is missing; 0 if both are there afterwards."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.adapters",
        description="Train two small LoRA adapters for SmolLM2 (minutes on a CPU).",
        epilog="example: python -m tools.adapters --only contacts",
    )
    parser.add_argument("--only", choices=sorted(LESSONS), help="train this one alone")
    parser.add_argument("--force", action="store_true", help="train again what is there")
    options = parser.parse_args()
    console = Console(stderr=True)
    try:
        base = assets.find(assets.SMOLLM2)
    except FileNotFoundError as error:
        console.print(f"[red]adapters:[/red] {error}", highlight=False)
        return 1
    for name in [options.only] if options.only else list(LESSONS):
        target = assets.cache() / assets.ADAPTERS / name
        if options.force:
            shutil.rmtree(target, ignore_errors=True)
        if not target.is_dir():
            make(LESSONS[name](), base, target, console)
        report = json.loads((target / ACCURACY).read_text("utf-8"))
        share = f"{report['before']:.0%} -> {report['after']:.0%} right on {report['rows']} held-out rows"
        console.print(f"{name}: {share}, {target}", highlight=False)
    return 0


def make(lesson: Lesson, base: Path, target: Path, console: Console) -> None:
    """Train one adapter and measure it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as scratch:
        built = Path(scratch) / lesson.name
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}")
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            train(lesson, base, built, progress)
            before = accuracy(lesson, base, None, progress)
            after = accuracy(lesson, base, built, progress)
        report = {"rows": len(lesson.held_out), "before": before, "after": after, "steps": lesson.steps}
        (built / ACCURACY).write_text(json.dumps(report) + "\n", "utf-8")
        built.rename(target)


def train(lesson: Lesson, base: Path, into: Path, progress: Progress) -> None:
    """Teach an adapter a lesson and save it in PEFT's format."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # PEFT and transformers about each other
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    net = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(net, config)
    model.peft_config["default"].base_model_name_or_path = "SmolLM2-135M-Instruct"  # not a path of this machine
    rows = [encode(tokenizer, row) for row in lesson.training[: lesson.steps * BATCH]]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    task = progress.add_task(f"{lesson.name}: training", total=lesson.steps, loss="")
    for step in range(lesson.steps):
        batch = [rows[(step * BATCH + index) % len(rows)] for index in range(BATCH)]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 10) * (1 - step / lesson.steps)
        loss = loss_of(model.base_model.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        said = f"loss {float(loss.detach()):.3f}"
        progress.update(task, advance=1, loss=said)
        if not progress.console.is_terminal and (step + 1) % 10 == 0:
            progress.console.print(f"{lesson.name}: step {step + 1} of {lesson.steps}, {said}", highlight=False)
    model.save_pretrained(into, save_embedding_layers=False)
    (into / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def encode(tokenizer: Any, row: Row) -> tuple[list[int], int]:
    """Tokens of a row, and how many of them are the question."""
    asked = question(tokenizer, row)
    return asked + tokenizer(row.answer + "<|im_end|>", add_special_tokens=False)["input_ids"], len(asked)


def question(tokenizer: Any, row: Row) -> list[int]:
    """Tokens up to where the answer begins."""
    messages = [{"role": "user", "content": row.question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def loss_of(net: Any, batch: Sequence[tuple[list[int], int]]) -> Any:
    """Mean cross-entropy over the tokens of the answers; logits are computed for those alone."""
    import torch
    from torch.nn import functional

    length = max(len(tokens) for tokens, _ in batch)
    ids = torch.full((len(batch), length), 2)
    seen = torch.zeros((len(batch), length), dtype=torch.long)
    labels = torch.full((len(batch), length), -100)
    for index, (tokens, asked) in enumerate(batch):
        ids[index, : len(tokens)] = torch.tensor(tokens)
        seen[index, : len(tokens)] = 1
        labels[index, asked : len(tokens)] = torch.tensor(tokens[asked:])
    hidden = net.model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
    wanted = labels[:, 1:] != -100
    return functional.cross_entropy(net.lm_head(hidden[:, :-1][wanted]).float(), labels[:, 1:][wanted])


def accuracy(lesson: Lesson, base: Path, adapter: Path | None, progress: Progress) -> float:
    """Share of held-out rows that the runner answers right, in one batch."""
    import torch

    from dataflower.llm.files import read_model, read_weights
    from dataflower.llm.model import build
    from dataflower.llm.params import SamplingParams
    from dataflower.llm.runner import Runner

    files = read_model(base)
    model = build(files.config, read_weights(base), dtype=torch.bfloat16, device=torch.device("cpu"))
    runner = Runner(model, tokenizer=files.tokenizer, ends=files.ends).start()
    try:
        loaded = None if adapter is None else runner.adapters.load(lesson.name, str(adapter))
        params = SamplingParams(max_tokens=lesson.answer_tokens)
        rows = lesson.held_out
        task = progress.add_task(f"{lesson.name}: {'with' if adapter else 'without'} it", total=len(rows), loss="")
        asked = [runner.stream(question(files.tokenizer, row), params, adapter=loaded) for row in rows]
        right = 0
        for row, tokens in zip(rows, asked, strict=True):
            right += lesson.right("".join(output.text for output in tokens), row)
            progress.advance(task)
        return right / len(rows)
    finally:
        runner.close()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.exit(main())
