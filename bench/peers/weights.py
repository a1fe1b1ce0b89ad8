"""Loaders of safetensors files: the library's own with a clone of each tensor, fastsafetensors, Run:ai's streamer.

Runs in dataflower's environment, for its torch; the rivals come from theirs, whose packages are put behind on the path.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.peers.protocol import Answer, serve

Tensors = dict[str, Any]


def drop(path: str) -> None:
    """Out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def load_file(path: str) -> Tensors:
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def fast(path: str) -> Tensors:
    from fastsafetensors import fastsafe_open

    with fastsafe_open(filenames=[path], nogds=True, device="cpu", debug_log=False) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)


def streamer(path: str) -> Tensors:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as stream:
        stream.stream_file(path)
        return dict(stream.get_tensors())


LOADERS = {"safetensors": load_file, "fastsafetensors": fast, "runai_model_streamer": streamer}


def load(loader: str, path: str) -> Answer:
    """Seconds from a cold page cache to tensors whose bytes are there."""
    if importlib.util.find_spec(loader) is None:
        return {"error": "not installed: make bench-peers"}
    drop(path)
    began = time.perf_counter()
    tensors = LOADERS[loader](path)
    seconds = time.perf_counter() - began
    for tensor in tensors.values():
        assert tensor.flatten()[-1:].numel()
    return {"samples": [seconds]}


if __name__ == "__main__":
    from bench.rivals import PEERS

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    sys.path.append(str(Path(PEERS).parent.parent / "lib" / version / "site-packages"))
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    for name in LOADERS:  # their imports are no part of what they take
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    serve(("safetensors", "torch"), load=load)
