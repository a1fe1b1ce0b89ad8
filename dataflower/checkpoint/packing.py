"""Weights laid out for this machine's processor, once for all functions of the host, and kept as a model of the store.

Matrix kernels want weights in a layout of their own. If each function made it for itself, each would hold a copy of
the backbone, and nothing would be shared. So the store has it made by a program of its own (`StoreConfig.packer`,
which knows what this package does not: the architecture), keeps
the result on the disk beside the model that it was made of, and maps it for whoever asks. No function takes part:
none can write what others compute with.

Such a model is asked for as `packed:DTYPE:MODEL`. Its name has a digest of all that it depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from dataflower.checkpoint import manifest as manifests
from dataflower.checkpoint import plan as plans
from dataflower.checkpoint.catalog import PACKED, Catalog
from dataflower.checkpoint.client import VARIABLE
from dataflower.checkpoint.disk import DiskTier, Located
from dataflower.checkpoint.loader import Progress, ignore
from dataflower.checkpoint.plan import Plan
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.sources import is_url
from dataflower.checkpoint.weights import SMALL_BYTES
from dataflower.errors import Code, DataflowerError, FailedPrecondition, Unavailable

VERSION = 2
DTYPES = ("bfloat16", "float32")
"""In which weights can be laid out."""
_BASE_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `packed:DTYPE:MODEL` says."""

    dtype: str
    model: str

    def __str__(self) -> str:
        return f"{PACKED}{self.dtype}:{self.model}"


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the packer says, as its last line: the name of what it made, or why there is none."""

    name: str = ""
    code: Code = Code.INTERNAL
    message: str = ""


class Advance(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the packer says before that, if it is asked to: bytes that it will write, and bytes that it has written."""

    total: int = 0
    written: int = 0


Pack = Callable[[Wanted], Outcome]


def parse(model: str) -> Wanted | None:
    """None: it names an ordinary model."""
    if not model.startswith(PACKED):
        return None
    dtype, _, base = model.removeprefix(PACKED).partition(":")
    return Wanted(dtype, base)


def artifact(base: str, digest: str, dtype: str) -> str:
    """Name of what is made of the model `base` with this digest, on this machine."""
    return f"{base[:_BASE_CHARACTERS]}.packed-{dtype}-{_key(digest, dtype)}"


def existing(disk: DiskTier, base: str, digest: str, dtype: str) -> str:
    """Name of what was made of this content for this machine, whatever the model was called; empty if nothing was."""
    own = artifact(base, digest, dtype)
    names = disk.names()
    if own in names:
        return own
    ending = f".packed-{dtype}-{_key(digest, dtype)}"
    return next((name for name in names if name.endswith(ending)), "")


def packed_of(disk: DiskTier, name: str, digest: str) -> tuple[str, ...]:
    """The dtypes in which the weights of a model lie ready for this machine; none where torch is not installed."""
    try:
        return tuple(dtype for dtype in DTYPES if existing(disk, name, digest, dtype))
    except FailedPrecondition:
        return ()


def prepare(
    config: StoreConfig, wanted: Wanted, *, progress: Progress = ignore, expect: Callable[[int], object] = ignore
) -> str:
    """Have a model's weights laid out now, so that no function has to wait for it later; blocks.

    Args:
        config: of the store.
        wanted: the model and the dtype.
        progress: told of bytes as they are written.
        expect: told the number of all bytes before the first.

    Returns:
        The name of what lies ready.

    Raises:
        NotFound, FailedPrecondition, ResourceExhausted, Unavailable: see `find`.
    """
    disk = DiskTier(config)
    return find(disk, wanted, lambda one: run(config, one, progress=progress, expect=expect)).name


def source(base: str, dtype: str) -> str:
    """What stands as source in the manifest of what is made of the model `base`."""
    return str(Wanted(dtype, base))


def find(disk: DiskTier, wanted: Wanted, pack: Pack) -> Plan:
    """The packed weights of a model; they are made if they are not there, which takes seconds and blocks.

    Raises:
        NotFound: there is no such model.
        WeightsInvalid: its files are no longer those that were added.
        FailedPrecondition: it is not to be packed: too small, or of a kind that runs as it is.
        ResourceExhausted: the disk is full.
        Unavailable: the packer died.
    """
    located = _base(disk, wanted.model)
    if located is not None:
        disk.touch(located.name)
        if sum(nbytes for _, nbytes in located.sizes()) <= SMALL_BYTES:
            raise FailedPrecondition(f"{located.name} is too small to be packed for all")
        if located.manifest is not None:
            _check_refusals(disk, located.manifest.digest, wanted.dtype)
            name = existing(disk, located.name, located.manifest.digest, wanted.dtype)
            if name:
                return _plan(disk, name, wanted, pack, located.name)
    return _plan(disk, _made(pack, wanted), wanted, pack, "" if located is None else located.name)


def refuse(disk: DiskTier, digest: str, dtype: str, reason: str) -> None:
    """Note that a model can't be packed here, so that nobody tries again."""
    with contextlib.suppress(OSError):
        manifests.write_atomically(_refusal_path(disk, digest, dtype), reason.encode())


def remove_others(disk: DiskTier, name: str, origin: str) -> None:
    """Of what was packed from the same model, keep `name` alone: the others are of other content or another machine."""
    catalog = Catalog(disk)
    for listed in catalog.ls():
        if listed.source == origin and listed.name != name and not listed.pinned:
            catalog.rm(listed.name)


def run(
    config: StoreConfig,
    wanted: Wanted,
    *,
    progress: Progress | None = None,
    expect: Callable[[int], object] = ignore,
) -> Outcome:
    """Run the packer; blocks. The weights that it reads are in its own memory, which goes when it is done.

    `progress` and `expect`: see `prepare`.

    Raises:
        Unavailable: it died.
    """
    settings = msgspec.json.encode(config, enc_hook=str).decode()
    command = [sys.executable, "-P", "-m", config.packer, "--dtype", wanted.dtype, "--config", settings, wanted.model]
    if progress is not None:
        command.insert(4, "--progress")
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    last = b""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment) as packer:
        assert packer.stdout is not None
        for line in packer.stdout:
            last = line
            if progress is not None:
                _tell(line, progress, expect)
    try:
        return msgspec.json.decode(last, type=Outcome)
    except msgspec.DecodeError:
        raise Unavailable(f"the packer of {wanted.model} ended ({packer.returncode}) without an answer") from None


def _tell(line: bytes, progress: Progress, expect: Callable[[int], object]) -> None:
    with contextlib.suppress(msgspec.DecodeError):  # its answer, or what a library prints
        said = msgspec.json.decode(line, type=Advance)
        if said.total:
            expect(said.total)
        if said.written:
            progress(said.written)


def _base(disk: DiskTier, model: str) -> Located | None:
    """None: it has yet to be fetched."""
    if is_url(model):
        name = plans.name_of(disk, model)
        return disk.settle(disk.locate(name)) if name in disk.names() else None
    return disk.settle(disk.locate(model))


def _made(pack: Pack, wanted: Wanted) -> str:
    outcome = pack(wanted)
    if not outcome.name:
        raise DataflowerError(outcome.message, code=outcome.code)
    return outcome.name


def _plan(disk: DiskTier, name: str, wanted: Wanted, pack: Pack, base: str) -> Plan:
    plan = plans.find(disk, name)
    plan.model, plan.base = str(wanted), base

    def again() -> Plan:
        Catalog(disk).rm(name)
        return plans.find(disk, _made(pack, wanted))

    plan.remake = again
    return plan


def _key(digest: str, dtype: str) -> str:
    """Of content, dtype, versions and processor."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        raise FailedPrecondition("weights are packed by torch, which is not installed") from None
    state = repr((VERSION, digest, dtype, torch, _instructions()))
    return hashlib.sha256(state.encode()).hexdigest()[:12]


def _instructions() -> tuple[str, ...]:
    """The sets of instructions that matrix kernels choose by."""
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return tuple(sorted(f for f in flags.split() if f.startswith(("avx", "amx", "sve", "asimd", "bf16"))))
    return ()


def _refusal_path(disk: DiskTier, digest: str, dtype: str) -> Path:
    return disk.root / ".known" / f"unpacked-{_key(digest, dtype)}"


def _check_refusals(disk: DiskTier, digest: str, dtype: str) -> None:
    with contextlib.suppress(OSError):
        reason = _refusal_path(disk, digest, dtype).read_text("utf-8")
        raise FailedPrecondition(reason)
