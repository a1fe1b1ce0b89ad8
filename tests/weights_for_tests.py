"""Small checkpoints, and ways to harm them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CHECK = """
import hashlib, json, os, sys
from dataflower import checkpoint
with checkpoint.open(sys.argv[1]) as weights:
    state = hashlib.sha256()
    for name in weights.files:
        state.update(weights.read(name))
    print(json.dumps([weights.digest, state.hexdigest()]), flush=True)
    sys.stdin.read()
"""
"""A program that opens a model, reads all of it, says what it saw, and keeps it until its input ends."""


def make(folder: Path, megabytes: float = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """A model folder with one file of random weights; gives what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {
        "layer.weight": np.resize(random.random(99_991, dtype=np.float32), (int(megabytes * 2**20) // 256 + 1, 64)),
        "layer.bias": random.random(7).astype(np.float16),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "none"}')
    return tensors


def flip(path: Path, at: int) -> None:
    """One bit, with the time of change as it was: what a failing disk does."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path, at: int) -> None:
    """Lose the end of a file."""
    os.truncate(path, at)
