"""Weights in the processor's layout: made once by the store, one copy however many functions compute with them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_checkpoint_store import proportional_bytes
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from typer.testing import CliRunner
from weights_for_tests import flip

from dataflower import checkpoint
from dataflower.checkpoint import packing
from dataflower.checkpoint.catalog import Catalog
from dataflower.checkpoint.disk import DiskTier
from dataflower.cli.group import app
from dataflower.llm.llama import LlamaModel
from dataflower.llm.model import build
from dataflower.llm.parts import NOTE
from dataflower.testing.store_process import StoreProcess, running

pytestmark = pytest.mark.slow

CONFIG = LlamaConfig(**tiny._SHAPE | {"vocab_size": 120_000, "hidden_size": 96, "head_dim": 24})
MANY = LlamaConfig(**tiny._SHAPE | {"vocab_size": 120_000, "hidden_size": 192, "head_dim": 48})
HOLD = """
import sys
from dataflower import checkpoint
with checkpoint.open(sys.argv[1], packed="bfloat16") as weights:
    print(all(len(bytes(weights.read(name))) for name in weights.files) and "dataflower.laid_out" in weights.metadata)
    sys.stdout.flush()
    sys.stdin.read()
"""


def make(folder: Path, config: Any) -> Path:
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def settings(tmp_path: Path) -> checkpoint.StoreConfig:
    return checkpoint.StoreConfig(models_dir=tmp_path / "store")


def opened(folder: Path) -> Any:
    """The model as a function has it."""
    with checkpoint.open(folder, packed="bfloat16") as weights:
        return build(
            CONFIG, weights.tensors(), dtype=torch.bfloat16, device=tiny.CPU, packed=False, metadata=weights.metadata
        )


def packed(tmp_path: Path) -> list[str]:
    return [m.name for m in Catalog(DiskTier(settings(tmp_path))).ls() if m.source.startswith("packed:")]


def hold(store: StoreProcess, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(store.door,),
    )  # fmt: skip


def test_functions_share_what_was_laid_out_once(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", CONFIG)
    with running(settings(tmp_path)) as store:
        holders = [hold(store, folder) for _ in range(2)]
        try:
            assert [holder.stdout.readline().strip() for holder in holders if holder.stdout] == ["True"] * 2
            found = store.statistics()
            assert [(m.name, m.clients) for m in found.models] == [(packed(tmp_path)[0], 2)]
            assert found.loads == 1  # the model itself was not even loaded
            pids = [store.pid, *(holder.pid for holder in holders)]
            shared = sum(proportional_bytes(pid)[0] for pid in pids)
            assert shared <= 1.02 * found.models[0].nbytes + 2**20
        finally:
            for holder in holders:
                holder.communicate()
    assert Catalog(DiskTier(settings(tmp_path))).ls()[0].files > 1  # configuration goes with it


def test_what_is_damaged_is_made_anew(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", CONFIG)
    with running(settings(tmp_path)):
        want = opened(folder).head(torch.ones(1, 96, dtype=torch.bfloat16))
    (name,) = packed(tmp_path)
    flip(tmp_path / "store" / name / "model.safetensors", 9_000_000)
    with running(settings(tmp_path)) as store:
        model = opened(folder)
        assert isinstance(model, LlamaModel)
        assert torch.equal(model.head(torch.ones(1, 96, dtype=torch.bfloat16)), want)
        assert store.statistics().models[0].name == name


def test_new_weights_take_the_place_of_the_old(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", CONFIG)
    with running(settings(tmp_path)):
        opened(folder)
        (old,) = packed(tmp_path)
        path = folder / "model.safetensors"
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size - 64)
            file.write(bytes(64))
        opened(folder)
        assert packed(tmp_path) != [old]
        assert len(packed(tmp_path)) == 1


def test_without_room_on_the_disk_a_function_runs_on_the_weights_as_they_are(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", MANY)
    with running(settings(tmp_path)) as store:
        resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (40 * 2**20, 40 * 2**20))
        with checkpoint.open(folder, packed="bfloat16") as weights:
            assert NOTE not in weights.metadata
            assert not weights.may_copy
            model = build(MANY, weights.tensors(), dtype=torch.bfloat16, device=tiny.CPU, packed=False)
            assert model.vocabulary == 120_000
        del weights, model
        assert packed(tmp_path) == []
        assert not list((tmp_path / "store").glob(".packing-*"))


def test_models_that_are_not_packed(tmp_path: Path) -> None:
    shape = {"vocab_size": 100_000, "n_embd": 96, "n_layer": 1, "n_head": 2, "n_positions": 64}
    folder = make(tmp_path / "gpt", GPT2Config(**shape))
    with running(settings(tmp_path)) as store:
        for _ in range(2):
            with checkpoint.open(folder, packed="bfloat16") as weights:
                assert NOTE not in weights.metadata
            del weights
        (refusal,) = (tmp_path / "store" / ".known").glob("unpacked-*")
        assert "as they are" in refusal.read_text()
        assert [m.name for m in store.statistics().models] == ["gpt"]
        small = make(tmp_path / "small", tiny.CONFIGS["llama"])
        with checkpoint.open(small, packed="bfloat16") as weights:
            assert weights.may_copy
        del weights


def test_an_architecture_that_nobody_knows_is_used_as_it_is(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", CONFIG)
    (folder / "config.json").write_text('{"model_type": "of-tomorrow"}')
    with running(settings(tmp_path)):
        with checkpoint.open(folder, packed="bfloat16") as weights:
            assert NOTE not in weights.metadata
        del weights
    (refusal,) = (tmp_path / "store" / ".known").glob("unpacked-*")
    assert "can't read config.json" in refusal.read_text()
    assert "of-tomorrow" in refusal.read_text()


def test_a_packer_that_dies(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", CONFIG)
    config = checkpoint.StoreConfig(models_dir=tmp_path / "store", packer="dataflower.errors")  # says nothing
    with running(config), checkpoint.open(folder, packed="bfloat16") as weights:
        assert NOTE not in weights.metadata
        assert json.loads(bytes(weights.read("config.json")))["vocab_size"] == 120_000


def test_weights_are_laid_out_when_a_model_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOWER_MODELS_DIR", str(tmp_path / "store"))
    folder = str(make(tmp_path / "m", CONFIG))

    def models(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["models", *args, "-o", "json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    assert models("add", folder, "--name", "plain", "--no-pack")[0]["packed"] == []
    assert packed(tmp_path) == []
    assert models("add", folder, "--name", "first")[0]["packed"] == ["bfloat16"]
    (made,) = packed(tmp_path)
    assert made.startswith("first.packed-bfloat16-")
    before = (tmp_path / "store" / made / "model.safetensors").stat()

    # The same content under other names is not laid out again, by hand or when a function asks.
    assert models("add", folder, "--name", "second")[0]["packed"] == ["bfloat16"]
    assert models("pack", "plain", "first")[0]["packed"] == ["bfloat16"]
    with running(settings(tmp_path)) as store:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, "second"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(store.door,),
        )  # fmt: skip
        assert holder.communicate()[0] == b"True\n"
        assert [model.name for model in store.statistics().models] == [made]
    after = (tmp_path / "store" / made / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert packed(tmp_path) == [made]
    assert {row["name"]: row["packed"] for row in models("ls")} == {
        "first": ["bfloat16"], "second": ["bfloat16"], "plain": ["bfloat16"], made: []
    }  # fmt: skip


def test_progress_is_told_and_refusals_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tmp_path)
    told, totals = [], []
    folder = make(tmp_path / "m", MANY)
    name = packing.prepare(config, packing.Wanted("bfloat16", str(folder)), progress=told.append, expect=totals.append)
    assert packed(tmp_path) == [name]
    assert 0 < sum(told) <= totals[0] * 1.1
    assert len(totals) == 1

    monkeypatch.setenv("DATAFLOWER_MODELS_DIR", str(config.models_dir))
    other = make(tmp_path / "other", GPT2Config(vocab_size=150_000, n_embd=64, n_layer=2, n_head=4, n_positions=64))
    added = CliRunner().invoke(app, ["models", "add", str(other), "--name", "other"])
    assert added.exit_code == 0
    assert "other is used as it is, not packed:" in added.stderr
    refused = CliRunner().invoke(app, ["models", "pack", "other"])
    assert (refused.exit_code, "not packed" in refused.stderr) == (1, True)
    assert CliRunner().invoke(app, ["models", "pack", "other", "--dtype", "int4"]).exit_code == 2
