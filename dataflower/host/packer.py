"""The program that lays the weights of a language model out for this machine's processor (see `checkpoint.packing`).

python -m dataflower.host.packer --dtype DTYPE --config JSON MODEL

The store of weights runs it. Its last line of output says what came of it.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from dataflower import checkpoint
from dataflower.checkpoint import packing
from dataflower.checkpoint import plan as plans
from dataflower.checkpoint.catalog import Catalog
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.format import encode_header
from dataflower.checkpoint.layout import pages
from dataflower.checkpoint.loader import is_index
from dataflower.checkpoint.repack import LINE_BYTES
from dataflower.checkpoint.settings import StoreConfig
from dataflower.errors import Code, DataflowerError
from dataflower.llm.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch

    from dataflower.checkpoint.weights import Weights

DTYPES = {"bfloat16": "BF16", "float32": "F32", "uint8": "U8"}
_HEADER_BYTES = 64 * 1024
_HEADER_BYTES_A_TENSOR = 512
_PR_SET_PDEATHSIG = 1
_TELL_BYTES = 8 * 1024 * 1024

Tell = Callable[[packing.Advance], None]


def pack(config: StoreConfig, model: str, dtype: str, tell: Tell = lambda said: None) -> packing.Outcome:
    """Make the packed weights of a model a model of the store.

    Raises:
        DataflowerError: the model can't be opened.
        OSError: the disk is full or fails.
    """
    disk = DiskTier(config)
    with checkpoint.open(model, config=config) as weights:
        base = plans.find(disk, model).name
        name = packing.artifact(base, weights.digest, dtype)
        with disk.lock(f"packing-{name}"):
            if ready := packing.existing(disk, base, weights.digest, dtype):
                return packing.Outcome(ready)
            built = disk.root / f".packing-{name}"
            shutil.rmtree(built, ignore_errors=True)  # of one that died
            built.mkdir(parents=True)
            try:
                _build(built, weights, dtype, tell)
                source = packing.source(base, dtype)
                Catalog(disk).adopt(built, name, source)
                packing.remove_others(disk, name, source)
            except UnsupportedModel as error:
                packing.refuse(disk, weights.digest, dtype, error.message)
                raise
            finally:
                shutil.rmtree(built, ignore_errors=True)
    return packing.Outcome(name)


def _build(folder: Path, weights: Weights, dtype: str, tell: Tell) -> None:
    """Write the files of the model into `folder`."""
    import torch
    from transformers import AutoConfig

    from dataflower.llm.model import record

    for name in weights.files:
        if not name.endswith(".safetensors") and not is_index(name):
            (folder / name).write_bytes(weights.read(name))
    if dtype not in DTYPES:
        raise UnsupportedModel(f"weights are packed as bfloat16 or float32, not as {dtype}")
    try:
        settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:  # an architecture, or a file, that this transformers does not know
        raise UnsupportedModel(f"transformers can't read config.json: {str(error).partition('. ')[0]}") from error
    tensors = weights.tensors()
    torch.set_num_threads(os.cpu_count() or 1)
    tell(packing.Advance(total=sum(t.numel() for t in tensors.values()) * getattr(torch, dtype).itemsize))
    with open(folder / "model.safetensors", "xb") as file:
        writer = _Writer(file, _HEADER_BYTES + _HEADER_BYTES_A_TENSOR * len(tensors), tell)
        note = record(settings, tensors, getattr(torch, dtype), writer.write)
        writer.finish(note)


class _Writer:
    """A safetensors file of tensors that come one by one, each at the beginning of a cache line."""

    def __init__(self, file: BinaryIO, header_bytes: int, tell: Tell) -> None:
        """`header_bytes`: kept free for the header, which is known last. `tell`: what is written, bit by bit."""
        self._tell, self._untold = tell, 0
        self._file, self._header_bytes = file, pages(header_bytes)
        self._places: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        self._at = 0
        file.seek(self._header_bytes)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The bytes of a tensor, and as many more as the next one wants before it."""
        import torch

        flat = tensor.contiguous().view(-1).view(torch.uint8)
        self._put(
            name, DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape), memoryview(flat.numpy().data)
        )
        if rest := -self._at % LINE_BYTES:
            self._put(f"filler.{len(self._places)}", "U8", (rest,), memoryview(bytes(rest)))

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header, and all to the disk."""
        header = encode_header(self._places, metadata, self._header_bytes)
        if len(header) != self._header_bytes:
            raise UnsupportedModel(f"the model has so many tensors that their header takes {len(header)} bytes")
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _put(self, name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        self._file.write(data)
        self._places[name] = (dtype, shape, self._at, self._at + data.nbytes)
        self._at += data.nbytes
        self._untold += data.nbytes
        if self._untold >= _TELL_BYTES:
            self._tell(packing.Advance(written=self._untold))
            self._untold = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as the process that the store starts."""
    parser = argparse.ArgumentParser(prog="python -m dataflower.host.packer", description=__doc__)
    parser.add_argument("model", help="name, folder, file or URL")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 or float32")
    parser.add_argument("--config", default="{}", help="settings of the store as JSON")
    parser.add_argument("--progress", action="store_true", help="say how far it has got, a line of JSON each time")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the store has died: nobody waits for the answer
    config = msgspec.json.decode(options.config, type=StoreConfig, dec_hook=lambda kind, value: kind(value))
    try:
        outcome = pack(config, options.model, options.dtype, _say if options.progress else lambda said: None)
    except DataflowerError as error:
        outcome = packing.Outcome(code=error.code, message=error.message)
    except OSError as error:
        code = Code.RESOURCE_EXHAUSTED if error.errno in {errno.ENOSPC, errno.EDQUOT} else Code.UNAVAILABLE
        outcome = packing.Outcome(code=code, message=f"weights of {options.model} could not be packed: {error}")
    _say(outcome)


def _say(what: msgspec.Struct) -> None:
    print(msgspec.json.encode(what).decode(), flush=True)


if __name__ == "__main__":
    main()
