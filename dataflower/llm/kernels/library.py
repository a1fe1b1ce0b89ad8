"""Where the compiled kernels are: beside their source, under a name that says for which processor and which source.

A library for another processor, or of another source, is not found, so it is never loaded. Without one the models run
on torch's operators.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from dataflower.errors import Code, DataflowerError

FOLDER = Path(__file__).parent
PLACE = FOLDER
"""Where compiled libraries lie."""
SOURCE = FOLDER / "decode.cpp"
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
COMPILERS = ("c++", "g++", "clang++")
SWITCH = "DATAFLOWER_KERNELS"
"""Environment: 0 turns the compiled kernels off."""
_TIMEOUT_S = 120


def compiler() -> str | None:
    """The C++ compiler: CXX, or what is on the path."""
    names = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    return next((found for name in names if (found := shutil.which(name))), None)


def path() -> Path:
    """Of the library for this processor and this source, whether it is there or not."""
    digest = hashlib.sha256("\n".join((*FLAGS, _processor())).encode())
    for source in sorted((*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h"))):
        digest.update(source.read_bytes())
    return PLACE / f"decode-{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compile the kernels, if they are not there; seconds. Others are removed.

    Raises:
        DataflowerError: There is no compiler, it fails, or the folder of the package can't be written.
    """
    there = path()
    if there.exists():
        return there
    found = compiler()
    if found is None:
        raise DataflowerError("no C++ compiler (c++, g++, clang++, or CXX)", code=Code.FAILED_PRECONDITION)
    try:
        with tempfile.TemporaryDirectory(dir=PLACE) as folder:
            made = Path(folder) / there.name
            command = [found, *FLAGS, str(SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            if done.returncode:
                raise DataflowerError(f"{' '.join(command)}:\n{done.stderr}", code=Code.FAILED_PRECONDITION)
            made.rename(there)
            for old in _compiled():
                if old != there:
                    old.unlink(missing_ok=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataflowerError(f"can't compile the kernels: {error}", code=Code.FAILED_PRECONDITION) from error
    load.cache_clear()
    return there


def remove() -> None:
    """Back to torch's operators. Processes that have the library loaded keep it."""
    for old in _compiled():
        old.unlink(missing_ok=True)


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library; None if it was not built for this processor, or is turned off."""
    if os.environ.get(SWITCH) == "0":
        return None
    there = path()
    if not there.exists():
        return None
    try:
        library = ctypes.CDLL(str(there))
    except OSError:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.dataflower_decode.argtypes = (pointer, pointer, ctypes.c_int)
    library.dataflower_decode.restype = None
    library.dataflower_product.argtypes = (pointer, pointer, number, pointer)
    library.dataflower_product.restype = None
    return library


def _compiled() -> list[Path]:
    return list(PLACE.glob("decode-*.so"))


def _processor() -> str:
    """What -march=native goes by."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    kinds = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    return platform.machine() + "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in kinds}))
