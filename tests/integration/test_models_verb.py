"""`dataflower models` as a person uses it, and what it makes of each kind of source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner
from weights_for_tests import flip, make

from dataflower import checkpoint
from dataflower.checkpoint.repack import LINE_BYTES, read_header
from dataflower.cli.group import app


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATAFLOWER_MODELS_DIR", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["models", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return result.stdout if code == 0 else result.stdout + result.stderr


def test_a_model_from_its_coming_to_its_going(tmp_path: Path, store: Path) -> None:
    make(tmp_path / "mine")
    added = json.loads(run("add", str(tmp_path / "mine"), "--name", "m", "--pin", "-o", "json"))
    assert (added[0]["name"], added[0]["pinned"], added[0]["location"]) == ("m", True, str(tmp_path / "mine"))
    run("unpin", "m")
    assert not json.loads(run("ls", "-o", "json"))[0]["pinned"]
    assert "1.0 MiB" in run("ls")
    assert "m     good" in run("verify")
    flip(tmp_path / "mine" / "model.safetensors", 5000)
    assert "damaged: model.safetensors at byte 0" in run("verify", "m", code=1)
    assert json.loads(run("rm", "m", "-o", "json")) == [{"name": "m", "freed_bytes": 0}]
    assert json.loads(run("ls", "-o", "json")) == []
    assert (tmp_path / "mine").is_dir()


def test_a_copy_can_be_mended_and_removed(tmp_path: Path, store: Path) -> None:
    make(tmp_path / "mine")
    run("add", str(tmp_path / "mine"), "-n", "m", "--copy")
    flip(store / "m" / "model.safetensors", 5000)
    assert "mended: model.safetensors" in run("verify", "m", "--mend")
    assert "good" in run("verify", "m")
    assert json.loads(run("rm", "m", "-o", "json"))[0]["freed_bytes"] > 2**20
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("add", "org/model"), "no file or folder 'org/model', and it is no URL; for the hub: hf://org/model"),
        (("add", "./nothing"), "no file or folder './nothing', and it is no URL ["),
        (("add", ".", "--name", "a/b"), "'a/b' can't name a model"),
        (("add", "."), "no safetensors files (no weights at all)"),
        (("rm", "m"), "no model 'm'"),
        (("pin", "m"), "no model 'm'"),
        (("verify", "m"), "no model 'm'"),
    ],
)
def test_what_can_not_be_is_said_in_a_line(args: tuple[str, ...], message: str) -> None:
    assert message in run(*args, code=1)


def test_repacked_weights_are_aligned_and_still_valid(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    random = np.random.default_rng(0)
    tensors = {
        "odd": random.random(3).astype(np.float16),
        "a": random.random((33, 64)).astype(np.float32),
        "flag": np.array([True]),
        "b": random.random((5, 32)).astype(np.float64),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    run("add", str(folder), "-n", "m", "--repack")
    packed = store / "m" / "model.safetensors"
    again = load_file(packed)
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    header = read_header(packed)
    assert header.metadata == {"format": "pt"}
    assert header.data_offset % 4096 == 0
    at = {spec.name: spec.offset for spec in header.tensors}
    assert at["a"] % LINE_BYTES == at["b"] % LINE_BYTES == 0
    assert at["odd"] % 2 == 0
    with checkpoint.open("m") as weights:
        assert weights.specs().keys() == tensors.keys()


def write_gguf(path: Path, *, merges: bool = True) -> dict[str, np.ndarray]:
    """A tiny Llama with its tokenizer, which can't be read without merges."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(260)
    letters = [chr(i) if 33 <= i < 127 else chr(256 + i) for i in range(256)] + ["ab", "cd"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<s>", "</s>", *letters])
    if merges:
        writer.add_token_merges(["a b", "c d"])
    writer.add_token_types([3, 3] + [1] * 258)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (260, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (48, 32),
        "blk.0.ffn_up": (48, 32),
        "blk.0.ffn_down": (32, 48),
    }
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in tensors.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_is_converted_once(tmp_path: Path, store: Path) -> None:
    pytest.importorskip("gguf")
    torch = pytest.importorskip("torch")
    from dataflower.checkpoint import skeleton

    wanted = write_gguf(tmp_path / "tiny.gguf")
    run("add", str(tmp_path / "tiny.gguf"))
    with checkpoint.open("tiny") as weights:
        tensors = weights.tensors()
        down = tensors["model.layers.0.mlp.down_proj.weight"]
        assert torch.equal(down, torch.tensor(wanted["blk.0.ffn_down"]).to(torch.bfloat16))
        query = torch.tensor(wanted["blk.0.attn_q"]).to(torch.bfloat16)
        halves = tensors["model.layers.0.self_attn.q_proj.weight"].view(4, 2, 4, 32)
        assert torch.equal(halves.transpose(1, 2).reshape(32, 32), query)
        model = skeleton.build(weights)
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert model.generation_config.eos_token_id == 1
        del tensors, down, halves, model
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + bytes(40))
    assert "tiny.gguf: the GGUF file can't be read" in run("add", str(tmp_path / "tiny.gguf"), "-n", "t", code=1)
    write_gguf(tmp_path / "poor.gguf", merges=False)
    assert "poor.gguf: can't convert it: it lacks 'scores'" in run("add", str(tmp_path / "poor.gguf"), code=1)
    (tmp_path / "not.gguf").write_bytes(b"hello")
    assert "this is no GGUF file" in run("add", str(tmp_path / "not.gguf"), code=1)
    assert sorted(path.name for path in store.iterdir() if not path.name.startswith(".")) == ["tiny"]
