"""Models from afar: onto the disk and into memory at once, going on after a break, never a wrong byte."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec.asyn
import numpy as np
import pytest
from http_for_tests import Web, serving
from safetensors.numpy import load_file, save_file
from weights_for_tests import cut, flip, make

from dataflower import checkpoint
from dataflower.checkpoint import disk, sources
from dataflower.checkpoint.catalog import Catalog
from dataflower.checkpoint.digest import CHUNK_BYTES
from dataflower.checkpoint.disk import DiskTier
from dataflower.errors import DataflowerError, NotFound, ResourceExhausted, Unavailable, WeightsInvalid
from dataflower.testing.store_process import running


@pytest.fixture(scope="module", autouse=True)
def loop_of_fsspec() -> None:
    """Its thread and sockets belong to the process: no leak of any test."""
    fsspec.asyn.get_loop()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_PAUSE_S", 0.0)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path) as serving_it:
        yield serving_it


@pytest.fixture
def config(tmp_path: Path) -> checkpoint.StoreConfig:
    return checkpoint.StoreConfig(models_dir=tmp_path / "store")


@pytest.fixture
def catalog(config: checkpoint.StoreConfig) -> Catalog:
    return Catalog(DiskTier(config))


def same(weights: checkpoint.Weights, wanted: dict[str, np.ndarray]) -> bool:
    spec = weights.specs()["layer.weight"]
    data = weights.read("model.safetensors")[spec.offset : spec.offset + spec.nbytes]
    return np.array_equal(np.frombuffer(data, np.float32), wanted["layer.weight"].ravel())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_model_of_a_web_server_is_fetched_once(
    web: Web, config: checkpoint.StoreConfig, catalog: Catalog, tmp_path: Path, ranges: bool
) -> None:
    wanted = make(tmp_path / "far", 20)
    web.ranges = ranges
    with checkpoint.open(f"{web.url}/far", config=config) as weights:
        assert same(weights, wanted)
        assert weights.config_dir.parent == config.models_dir
        (listed,) = catalog.ls()
        assert listed.digest == weights.digest
        assert listed.source == f"{web.url}/far"
    sent = web.sent
    with (
        checkpoint.open(f"{web.url}/far", config=config) as again,
        checkpoint.open(listed.name, config=config) as named,
    ):
        assert same(again, wanted)
        assert named.digest == again.digest
    assert web.sent == sent
    on_disk = load_file(config.models_dir / listed.name / "model.safetensors")
    assert np.array_equal(on_disk["layer.weight"], wanted["layer.weight"])


def test_files_and_shards_and_listless_servers(
    web: Web, config: checkpoint.StoreConfig, catalog: Catalog, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in (1, 2):
        save_file({f"t{i}": np.arange(5.0) + i}, folder / f"m-{i}.safetensors")
    (folder / "index.html").write_text("nothing to see here")  # instead of a list of files
    index = {"weight_map": {"t1": "m-1.safetensors", "t2": "m-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with checkpoint.open(f"{web.url}/shards", config=config) as weights:
        assert weights.specs().keys() == {"t1", "t2"}
    assert catalog.fetch(f"{web.url}/shards/m-1.safetensors", "one").files[0].name == "m-1.safetensors"
    assert catalog.fetch((tmp_path / "shards").as_uri(), "local").digest == weights.digest
    with pytest.raises(NotFound, match="no model at"):
        catalog.fetch(f"{web.url}/nonesuch")
    with socket.socket() as silent:  # bound, but nobody listens: not the same as nothing there
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="can't get http"):
            catalog.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/far")
    with pytest.raises(DataflowerError, match="can't read nosuchprotocol"):
        catalog.fetch("nosuchprotocol://x/y")


def test_an_interrupted_fetch_goes_on_where_it_ended(
    web: Web, config: checkpoint.StoreConfig, catalog: Catalog, tmp_path: Path
) -> None:
    wanted = make(tmp_path / "far", 60)
    web.fail_after = 45 * 2**20
    with pytest.raises(Unavailable, match=r"can't get model\.safetensors"):
        catalog.fetch(f"{web.url}/far", "m")
    assert catalog.ls() == ()
    partial = config.models_dir / ".partial-m"
    kept = partial.joinpath("progress").read_text().count("\n") - 1
    assert kept >= 2
    first = web.sent
    flip(partial / "model.safetensors", _first_chunk(partial) * CHUNK_BYTES + 7)  # what is kept is checked, too
    web.fail_after = None
    catalog.fetch(f"{web.url}/far", "m")
    again = web.sent - first
    total = (tmp_path / "far" / "model.safetensors").stat().st_size
    assert again <= total - (kept - 2) * CHUNK_BYTES + 4096
    assert not partial.exists()
    with checkpoint.open("m", config=config) as weights:
        assert same(weights, wanted)


def _first_chunk(partial: Path) -> int:
    lines = (partial / "progress").read_text().splitlines()[1:]
    return min(int(line.split()[0]) for line in lines if line.endswith("model.safetensors"))


def test_a_killed_fetch_goes_on_where_it_ended(web: Web, config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    wanted = make(tmp_path / "far", 60)
    program = (
        "import sys; from pathlib import Path; from dataflower.checkpoint import StoreConfig\n"
        "from dataflower.checkpoint.catalog import Catalog; from dataflower.checkpoint.disk import DiskTier\n"
        "Catalog(DiskTier(StoreConfig(models_dir=Path(sys.argv[1])))).fetch(sys.argv[2], 'm')"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(config.models_dir), f"{web.url}/far"])
    enough, over = threading.Event(), threading.Event()

    def watch(now: Web) -> None:
        if now.sent > 45 * 2**20:  # and no further: some chunks are there, some are not
            enough.set()
            over.wait(60)

    web.on_sent = watch
    assert enough.wait(60)
    journal = config.models_dir / ".partial-m" / "progress"
    end = time.monotonic() + 60
    while journal.read_text().count("\n") < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    web.on_sent = None
    over.set()
    kept = {int(line.split()[0]) for line in journal.read_text().splitlines() if line.endswith(" model.safetensors")}
    before = len(web.requests)
    Catalog(DiskTier(config)).fetch(f"{web.url}/far", "m")
    ranges = re.findall(r"model.safetensors bytes=(\d+)-(\d+)", " ".join(web.requests[before:]))
    asked = {int(begin) // CHUNK_BYTES for begin, end in ranges if end != "0"}  # one byte shows that there are ranges
    assert kept
    assert asked
    assert not kept & asked
    with checkpoint.open("m", config=config) as weights:
        assert same(weights, wanted)


def test_two_processes_fetch_it_once(web: Web, config: checkpoint.StoreConfig, tmp_path: Path) -> None:
    make(tmp_path / "far", 20)
    found: list[str] = []

    def fetch() -> None:
        found.append(Catalog(DiskTier(config)).fetch(f"{web.url}/far", "m").digest)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert web.sent < 1.5 * 20 * 2**20


@pytest.mark.parametrize("harm", [flip, cut])
def test_damage_on_the_disk_is_fetched_again_and_mended(
    web: Web, config: checkpoint.StoreConfig, catalog: Catalog, tmp_path: Path, harm: object
) -> None:
    wanted = make(tmp_path / "far", 20)
    catalog.fetch(f"{web.url}/far", "m")
    path = config.models_dir / "m" / "model.safetensors"
    harm(path, CHUNK_BYTES + 100)  # type: ignore[operator]
    before = web.sent
    with checkpoint.open("m", config=config) as weights:
        assert same(weights, wanted)
    assert 0 < web.sent - before <= 2 * CHUNK_BYTES
    assert path.read_bytes() == (tmp_path / "far" / "model.safetensors").read_bytes()
    path.unlink()
    with checkpoint.open("m", config=config) as weights:
        assert same(weights, wanted)


def test_damage_that_can_not_be_mended_is_an_error(
    web: Web, config: checkpoint.StoreConfig, catalog: Catalog, tmp_path: Path
) -> None:
    make(tmp_path / "far", 20)
    catalog.fetch(f"{web.url}/far", "m")
    path = config.models_dir / "m" / "model.safetensors"
    flip(path, 100_000)
    assert [(d.file, d.offset, d.mended) for d in catalog.verify("m")] == [("model.safetensors", 0, False)]
    make(tmp_path / "far", 20, seed=9)  # the source has something else now
    with pytest.raises(WeightsInvalid, match="another content"):
        checkpoint.open("m", config=config)
    with pytest.raises(WeightsInvalid, match="another content"):
        catalog.verify("m", mend=True)
    make(tmp_path / "far", 20)
    assert catalog.verify("m", mend=True)[0].mended
    assert catalog.verify("m") == ()


def test_what_the_source_states_is_checked(
    web: Web, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "far", 10)
    right = hashlib.sha256((tmp_path / "far" / "model.safetensors").read_bytes()).hexdigest()
    real = sources.Source._file
    stated = "0" * 64

    def state(self: sources.Source, name: str, entry: dict[str, object]) -> sources.RemoteFile:
        entry = {**entry, "lfs": {"sha256": stated}} if name == "model.safetensors" else entry
        return real(self, name, entry)

    monkeypatch.setattr(sources.Source, "_file", state)
    with pytest.raises(WeightsInvalid, match=f"its SHA-256 is {right}, the source says 000"):
        catalog.fetch(f"{web.url}/far", "m")
    assert catalog.ls() == ()
    stated = right
    assert catalog.fetch(f"{web.url}/far", "m").files[0].sha256 == right


def test_a_source_that_changes_meanwhile_is_no_mixture(
    web: Web, config: checkpoint.StoreConfig, catalog: Catalog, tmp_path: Path
) -> None:
    before = make(tmp_path / "far", 60)
    changed = threading.Event()

    def change(now: Web) -> None:
        if now.sent > 20 * 2**20 and not changed.is_set():
            changed.set()
            make(tmp_path / "far", 60, seed=3)
            os.utime(tmp_path / "far" / "model.safetensors", (1, 1))

    web.on_sent = change
    try:
        catalog.fetch(f"{web.url}/far", "m")
    except DataflowerError:
        pass
    else:  # all of the old was on its way already
        with checkpoint.open("m", config=config) as weights:
            assert same(weights, before)
        catalog.rm("m")
    assert changed.is_set()
    web.on_sent = None
    wanted = make(tmp_path / "far", 60, seed=3)
    catalog.fetch(f"{web.url}/far", "m")
    with checkpoint.open("m", config=config) as weights:
        assert same(weights, wanted)


def test_a_truncated_original_is_refused(web: Web, catalog: Catalog, tmp_path: Path) -> None:
    make(tmp_path / "far", 10)
    cut(tmp_path / "far" / "model.safetensors", 9_000_000)
    with pytest.raises(WeightsInvalid, match=r"cut off.*came like this from"):
        catalog.fetch(f"{web.url}/far", "m")
    assert catalog.ls() == ()
    wanted = make(tmp_path / "far", 10)
    assert catalog.fetch(f"{web.url}/far", "m").files[0].nbytes > wanted["layer.weight"].nbytes


def test_a_store_fetches_for_all_and_the_second_time_from_the_disk(
    web: Web, config: checkpoint.StoreConfig, tmp_path: Path
) -> None:
    wanted = make(tmp_path / "far", 40)
    opened: list[checkpoint.Weights] = []
    with running(config) as store:
        threads = [threading.Thread(target=lambda: opened.append(checkpoint.open(f"{web.url}/far"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(same(weights, wanted) for weights in opened)
        assert store.statistics().loads == 1
        assert web.sent < 1.2 * opened[0].nbytes
        again = checkpoint.open(f"{web.url}/far")  # its key is another now, its content is not
        assert store.statistics().loads == 1
        assert {rate.source for rate in store.statistics().rates if rate.bandwidth} == {"remote"}
        for weights in (*opened, again):
            weights.close()
    opened.clear()
    del again, weights


def test_a_full_disk_is_said_and_what_has_come_is_kept(
    web: Web, config: checkpoint.StoreConfig, tmp_path: Path
) -> None:
    make(tmp_path / "far", 40)
    program = (
        "import resource, sys; from pathlib import Path; from dataflower.checkpoint import StoreConfig\n"
        "from dataflower.checkpoint.catalog import Catalog; from dataflower.checkpoint.disk import DiskTier\n"
        "from dataflower.errors import ResourceExhausted\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, 20 << 20))\n"
        "try: Catalog(DiskTier(StoreConfig(models_dir=Path(sys.argv[1])))).fetch(sys.argv[2], 'm')\n"
        "except ResourceExhausted as error: print(error.message)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(config.models_dir), f"{web.url}/far"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "no room on the disk for m: 40 MiB" in said
    before = web.sent
    manifest = Catalog(DiskTier(config)).fetch(f"{web.url}/far", "m")
    assert web.sent - before < manifest.nbytes - CHUNK_BYTES
    assert Catalog(DiskTier(config)).verify("m") == ()


def test_the_disk_tier_keeps_its_cap_and_what_is_pinned(web: Web, tmp_path: Path) -> None:
    for name in "abc":
        make(tmp_path / name, 10, seed=ord(name))
    catalog = Catalog(DiskTier(checkpoint.StoreConfig(models_dir=tmp_path / "store", models_disk_bytes=21 * 2**20)))
    for name in "ab":
        catalog.fetch(f"{web.url}/{name}", name)
    os.utime(catalog.disk.meta("a") / "used", (1, 1))
    catalog.pin("a")
    catalog.fetch(f"{web.url}/c", "c")
    assert [(m.name, m.pinned) for m in catalog.ls()] == [("a", True), ("c", False)]
    catalog.pin("c")
    with pytest.raises(ResourceExhausted, match=r"b needs 10 MiB on disk.*kept: a \(pinned\), c \(pinned\)"):
        catalog.fetch(f"{web.url}/b", "b")
    catalog.pin("c", False)
    assert catalog.rm("a") > 10 * 2**20
    catalog.fetch(f"{web.url}/b", "b")
    assert [m.name for m in catalog.ls()] == ["b", "c"]


def _edit(folder: Path) -> None:
    make(folder, seed=4)  # of the same size


def _grow(folder: Path) -> None:
    make(folder, 2)


def _configure(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "some"}')


def _extend(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def _lose(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_edit, r"model\.safetensors has another content"),
        (_grow, r"model\.safetensors has another content"),
        (_configure, r"config\.json has another content"),
        (_extend, r"chat_template\.jinja has come"),
        (_lose, r"config\.json is gone"),
    ],
)
@pytest.mark.parametrize("held", [False, True], ids=["not in memory", "in memory"])
def test_a_registered_folder_that_was_changed_is_refused_until_it_is_added_again(
    config: checkpoint.StoreConfig,
    catalog: Catalog,
    tmp_path: Path,
    change: Callable[[Path], None],
    said: str,
    held: bool,
) -> None:
    folder = tmp_path / "mine"
    make(folder)
    catalog.register(folder, "m")
    before = checkpoint.open("m", config=config) if held else None
    change(folder)
    for refuse in (lambda: checkpoint.open("m", config=config), lambda: catalog.verify("m")):
        for _ in range(2):
            with pytest.raises(WeightsInvalid, match=said) as refused:
                refuse()
            assert f"`dataflower models add {folder} --name m`" in refused.value.message
    catalog.register(folder, "m")
    with checkpoint.open("m", config=config) as weights:
        assert before is None or weights.digest != before.digest
    if before is not None:
        before.close()


def test_a_registered_folder_whose_files_were_only_touched_is_as_it_was(
    config: checkpoint.StoreConfig, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make(tmp_path / "mine")
    digest = catalog.register(tmp_path / "mine", "m").digest
    original = tmp_path / "mine" / "model.safetensors"
    original.rename(tmp_path / "away")
    with pytest.raises(NotFound, match="no safetensors files"):
        checkpoint.open("m", config=config)
    original.write_bytes((tmp_path / "away").read_bytes())
    assert catalog.verify("m") == ()
    with checkpoint.open("m", config=config) as weights:
        assert same(weights, wanted)
        assert weights.digest == digest
    monkeypatch.setattr(disk, "_is_content", lambda *_: pytest.fail("it was read though it is noted as it is"))
    checkpoint.open("m", config=config).close()


def test_a_folder_is_registered_where_it_lies(config: checkpoint.StoreConfig, catalog: Catalog, tmp_path: Path) -> None:
    wanted = make(tmp_path / "mine")
    catalog.register(tmp_path / "mine", "m")
    with checkpoint.open("m", config=config) as weights:
        assert same(weights, wanted)
        assert weights.config_dir == tmp_path / "mine"
        before = weights.digest
    wanted = make(tmp_path / "mine", seed=4)
    catalog.register(tmp_path / "mine", "m")
    with checkpoint.open("m", config=config) as weights:
        assert same(weights, wanted)
        assert weights.digest != before
    assert catalog.ls()[0].digest != before
    assert catalog.rm("m") == 0
    assert (tmp_path / "mine" / "model.safetensors").exists()
    with pytest.raises(NotFound, match="no model 'm'"):
        catalog.rm("m")
