"""Weights from a folder of the user's into this process: right bytes, no copy, no wrong weight ever."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from weights_for_tests import flip

from dataflower import checkpoint
from dataflower.checkpoint import opening
from dataflower.checkpoint.catalog import Catalog
from dataflower.checkpoint.digest import CHUNK_BYTES
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.layout import PAGE_BYTES
from dataflower.checkpoint.tensors import bind
from dataflower.errors import Closed, InvalidArgument, NotFound, WeightsInvalid

torch = pytest.importorskip("torch")
safe = pytest.importorskip("safetensors.torch")


@pytest.fixture
def config(tmp_path: Path) -> checkpoint.StoreConfig:
    return checkpoint.StoreConfig(models_dir=tmp_path / "store")


def make(folder: Path, megabytes: float = 0.1, seed: int = 0) -> dict[str, object]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "layer.weight": torch.randn(int(megabytes * 2**20) // 256 + 1, 64, generator=generator),
        "layer.bias": torch.randn(7, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(3),
        "none": torch.zeros(0, 5),
    }
    safe.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "none"}')
    return tensors


def equal(tensors: object, wanted: dict[str, object]) -> bool:
    return tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], wanted[name]) for name in wanted)


def test_a_folder_is_read_and_its_digest_is_that_of_its_content(config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    wanted = make(tmp_path / "a", 20)
    make(tmp_path / "b", 20)
    make(tmp_path / "c", 20, seed=1)
    seen: list[int] = []
    with checkpoint.open(tmp_path / "a", config=config, progress=seen.append) as a:
        assert equal(a.tensors(), wanted)
        assert a.config_dir == tmp_path / "a"
        assert json.loads(bytes(a.read("config.json"))) == {"model_type": "none"}
        assert sum(seen) == a.nbytes
        assert a.specs()["layer.bias"].dtype == "BF16"
        with checkpoint.open(tmp_path / "b", config=config) as b, checkpoint.open(tmp_path / "c", config=config) as c:
            assert a.digest == b.digest != c.digest


def test_shards_and_single_files_are_read(config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    parts = {"m-1.safetensors": {"a": torch.randn(3000, 1000)}, "m-2.safetensors": {"b": torch.randn(5)}}
    for name, tensors in parts.items():
        safe.save_file(tensors, folder / name)
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    safe.save_file({"stray": torch.randn(5)}, folder / "consolidated.safetensors")
    wanted = {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}
    with checkpoint.open(folder, config=config) as weights:
        assert equal(weights.tensors(), wanted)
    with checkpoint.open(folder / "m-2.safetensors", config=config) as weights:
        assert weights.tensors().keys() == {"b"}
    (folder / "m-1.safetensors").unlink()
    with pytest.raises(WeightsInvalid, match=r"lists 'm-1.safetensors', which is not there"):
        checkpoint.open(folder, config=config)


def test_an_index_that_names_a_tensor_of_no_shard_is_refused_wherever_the_model_comes_in(
    config: checkpoint.StoreConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    for name in "ab":
        safe.save_file({name: torch.randn(5)}, folder / f"m-{name}.safetensors")
    index = {"weight_map": {"a": "m-a.safetensors", "b": "m-b.safetensors", "b.bias": "m-b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said = r"model\.safetensors\.index\.json: tensor 'b.bias' is not in m-b\.safetensors"
    with checkpoint.open(folder, config=config) as weights, pytest.raises(WeightsInvalid, match=said):
        weights.tensors()
    catalog = Catalog(DiskTier(config))
    with pytest.raises(WeightsInvalid, match=said):
        catalog.register(folder, "m")
    with pytest.raises(WeightsInvalid, match=said):
        catalog.fetch(folder.as_uri(), "m")
    assert catalog.ls() == ()
    index["weight_map"].pop("b.bias")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    catalog.fetch(folder.as_uri(), "m")
    with checkpoint.open("m", config=config) as weights:
        assert weights.tensors().keys() == {"a", "b"}


def test_all_who_open_it_share_one_copy_and_load_it_once(config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    make(tmp_path / "m", 9)
    loaded: list[int] = []
    held: list[checkpoint.Weights] = []

    def open_it() -> None:
        held.append(checkpoint.open(tmp_path / "m", config=config, progress=loaded.append))

    threads = [threading.Thread(target=open_it) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(loaded) == held[0].nbytes
    assert len({w.tensors()["layer.weight"].data_ptr() for w in held}) == 1
    for weights in held:
        weights.close()


def test_tensors_outlive_close_and_the_memory_goes_with_the_last(
    config: checkpoint.StoreConfig, tmp_path: Path
) -> None:
    wanted = make(tmp_path / "m")
    weights = checkpoint.open(tmp_path / "m", config=config)
    kept = weights.tensors()["layer.weight"]
    weights.close()
    with pytest.raises(Closed):
        weights.tensors()
    assert torch.equal(kept, wanted["layer.weight"])
    assert Path("/proc/self/maps").read_text().count("dataflower-weights")
    del kept
    assert not Path("/proc/self/maps").read_text().count("dataflower-weights")
    assert not opening._here


@pytest.mark.parametrize("write", ["tensor", "mprotect", "mmap"])
def test_weights_cannot_be_written(config: checkpoint.StoreConfig, tmp_path: Path, write: str) -> None:
    from dataflower.checkpoint.region import Segment, _libc

    make(tmp_path / "m")
    with checkpoint.open(tmp_path / "m", config=config) as weights:
        tensor = weights.tensors()["layer.weight"]
        pid = os.fork()
        if not pid:
            faulthandler.disable()
            if write == "tensor":
                ctypes.memset(tensor.data_ptr(), 0, 1)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert died == (-signal.SIGSEGV if write == "tensor" else 0)
        if write == "mprotect":
            address = tensor.data_ptr() // PAGE_BYTES * PAGE_BYTES
            both = mmap.PROT_READ | mmap.PROT_WRITE
            assert _libc().mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_BYTES), both) == -1
        del tensor
    if write == "mmap":
        segment = Segment(PAGE_BYTES)
        with pytest.raises(PermissionError):
            mmap.mmap(segment.fd, PAGE_BYTES)
        with pytest.raises(PermissionError):
            os.write(segment.fd, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, 0)
        segment.close()


def cut(path: Path, at: int) -> None:
    os.truncate(path, at)


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("at", [100, CHUNK_BYTES + 5, -3])
def test_damage_since_the_first_load_is_an_error(
    config: checkpoint.StoreConfig, tmp_path: Path, harm: Callable[[Path, int], None], at: int
) -> None:
    make(tmp_path / "m", 20)
    path = tmp_path / "m" / "model.safetensors"
    checkpoint.open(tmp_path / "m", config=config).close()
    harm(path, at % path.stat().st_size)
    with pytest.raises(WeightsInvalid, match=r"model\.safetensors"):
        checkpoint.open(tmp_path / "m", config=config).tensors()


def test_a_file_that_the_user_replaced_is_digested_anew(config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    make(tmp_path / "m")
    with checkpoint.open(tmp_path / "m", config=config) as before:
        wanted = make(tmp_path / "m", seed=5)
        with checkpoint.open(tmp_path / "m", config=config) as after:
            assert after.digest != before.digest
            assert equal(after.tensors(), wanted)


def test_what_is_not_there_is_named(config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model 'nonesuch'"):
        checkpoint.open("nonesuch", config=config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(NotFound, match=r"pytorch_model\.bin.*save_pretrained"):
        checkpoint.open(tmp_path / "other", config=config)


def test_a_module_takes_the_tensors_as_they_are(config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    safe.save_file({"weight": torch.randn(4, 3), "bias": torch.randn(4)}, tmp_path / "m" / "model.safetensors")
    with checkpoint.open(tmp_path / "m", config=config) as weights:
        tensors = weights.tensors()
        with torch.device("meta"):
            module, wrong, lacking = torch.nn.Linear(3, 4), torch.nn.Linear(3, 5), torch.nn.Bilinear(3, 3, 4)
        bind(module, tensors)
        assert module.weight.data_ptr() == tensors["weight"].data_ptr()
        assert not module.weight.requires_grad
        with pytest.raises(InvalidArgument, match=r"weight: \[4, 3\] in the checkpoint, \[5, 3\] in the model"):
            bind(wrong, tensors)
        with pytest.raises(InvalidArgument, match=r"don't fit|lacks"):
            bind(lacking, {"bias": tensors["bias"]})


def test_a_folder_that_can_not_be_seen_is_copied_for_libraries(config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    make(tmp_path / "m")
    with checkpoint.open(tmp_path / "m", config=config) as weights:
        (tmp_path / "m").rename(tmp_path / "gone")
        folder = weights.config_dir
        assert (folder / "config.json").read_text() == '{"model_type": "none"}'
        assert folder == weights.config_dir
    assert not folder.exists()
