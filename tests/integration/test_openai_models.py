"""Real models behind a real server: unchanged clients of OpenAI's API, and what README shows of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openai import BadRequestError, OpenAI

from functions import embed

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(300)]
TEXTS = ["A man is eating food.", "Somebody has a meal.", "The stock market fell sharply on Monday."]

UNABLE = {"chat-image-input"}
"""Checks of llm-comply that ask for what this model does not do."""


NAMED = "smollm2-o1"
"""The same model under a name for which llm-comply does not skip its check of reasoning parameters."""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Where a server with both models answers."""
    greedy = tmp_path / "chat.yaml"  # where a client does not say, the shipped one leaves the answers to chance
    greedy.write_text((ROOT / "workflows/chat.yaml").read_text().replace("temperature: 1.0", "temperature: 0.0"))
    command = [sys.executable, "-m", "dataflower.cli", "serve", "--port", "0", "--state-dir", str(tmp_path / "state")]
    named = tmp_path / "named.yaml"
    named.write_text(greedy.read_text().replace("name: smollm2\n", f"name: {NAMED}\n"))
    command += ["--workflow", str(greedy), "--workflow", "workflows/embed.yaml", "--code-path", str(ROOT)]
    command += ["--workflow", str(named)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            first, second = server.stdout.readline(), server.stdout.readline()
            assert (first[:12], second[:8]) == ("listening on", "HTTP on ")
            yield second.split()[2]
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0


def shown() -> str:
    """README's example of the `openai` package."""
    return next(text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from openai" in text)


def cosine(one: list[float], other: list[float]) -> float:
    return float(np.dot(one, other))


def test_clients_of_openai_get_answers_and_vectors(url: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(shown().replace("http://127.0.0.1:8000", url), "README.md", "exec"), {})
    assert "Paris" in said.getvalue()
    assert said.getvalue().endswith("2 vectors of 384\n")
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        vectors = [data.embedding for data in client.embeddings.create(model="minilm", input=TEXTS).data]
        assert cosine(vectors[0], vectors[1]) > 0.5 > 0.2 > cosine(vectors[0], vectors[2])
        with pytest.raises(BadRequestError) as refused:
            client.embeddings.create(model="minilm", input="word " * 500)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
        text = client.completions.create(
            model="smollm2", prompt="The capital of France is", max_tokens=5, temperature=0
        )
        assert "Paris" in text.choices[0].text
        assert text.usage is not None
        assert text.usage.completion_tokens <= 5
    results = comply(url, "smollm2") | comply(url, NAMED, "--filter", "chat-reasoning-summary")
    assert len(results) == 9
    assert {name for name, r in results.items() if r["status"] != "passed"} <= UNABLE, json.dumps(results, indent=1)
    warned = " ".join(results["chat-reasoning-summary"]["warnings"])
    assert "reasoning_tokens is 0" in warned  # what it asks for is taken; this model does not reason, and usage says so


def comply(url: str, model: str, *more: str) -> dict[str, Any]:
    """What llm-comply says of each check."""
    checks = str(Path(sys.executable).with_name("llm-comply"))
    command = [checks, "--format", "openai-chat", "-u", f"{url}/v1", "-m", model, "--json", "-k", "none"]
    command += ["--timeout", "120", *more]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ).stdout)
    return {result["id"]: result for result in report["results"]}


def test_vectors_are_the_same_alone_and_in_a_batch() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        embedder = embed.Embed()
        embedder.setup(batch_size=2)
        texts = [*TEXTS, "Short", "A man is eating food."]
        made = embedder(texts)
        assert made["tokens"] == [len(embedder.tokenizer(text)["input_ids"]) for text in texts]
        assert made["vectors"].shape == (5, 384)
        torch.testing.assert_close(made["vectors"].norm(dim=1), torch.ones(5))
        torch.testing.assert_close(made["vectors"][0], made["vectors"][4], atol=1e-5, rtol=1e-4)
        for index, text in enumerate(texts):
            alone = embedder([embedder.tokenizer(text)["input_ids"]])
            torch.testing.assert_close(alone["vectors"][0], made["vectors"][index], atol=1e-5, rtol=1e-4)
        with pytest.raises(embed.TextTooLong, match=r"text 1 has \d+ tokens, the model takes 256"):
            embedder(["a", "word " * 400])
        with pytest.raises(embed.InvalidArgument, match="text 0 holds a token id"):
            embedder([[10**6]])
        embedder.truncate = True
        assert embedder(["word " * 400])["tokens"] == [256]
    finally:
        torch.set_num_threads(threads)


def test_nothing_to_embed_gives_no_vectors() -> None:
    embedder = embed.Embed()
    embedder.setup()
    assert embedder([])["vectors"].shape == (0, 384)
