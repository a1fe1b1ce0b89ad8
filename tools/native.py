"""Compile the modules on the way of a token to machine code, in place, with mypyc: `python -m tools.native`.

Python runs the same sources when nothing is compiled; compiled, a hop takes about half the time. `--remove` takes the
compiled modules away; `--check` fails if one of them is older than its source. The decode step of language models
(`dataflower.llm.kernels`) is compiled and removed with them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from dataflower.errors import DataflowerError
from dataflower.llm.kernels import library

ROOT = Path(__file__).parent.parent
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
LIBRARY = "dataflower.native"
"""What the modules share; its name goes into the library's file name."""
# Not channel/plain.py, which walks through users' values: compiled code has no limit for recursion but the stack's end.
MODULES = (
    "dataflower/core/*.py",
    "dataflower/channel/link.py",
    "dataflower/container/batch_unit.py",
    "dataflower/container/data_unit.py",
    "dataflower/container/function_unit.py",
    "dataflower/container/outputs.py",
    "dataflower/container/running.py",
    "dataflower/container/stream.py",
    "dataflower/container/target.py",
    "dataflower/host/engine.py",
    "dataflower/host/links.py",
    "dataflower/host/remote_peer.py",
)
BUILD = """
from concurrent.futures import ThreadPoolExecutor
import os, sys
from mypyc.build import mypycify
from setuptools import setup
from setuptools._distutils.ccompiler import CCompiler

def compile_side_by_side(
    self, sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None, extra_postargs=None,
    depends=None,
):
    # In place of the method that compiles one file after the other.
    macros, objects, extra_postargs, pp_opts, build = self._setup_compile(
        output_dir, macros, include_dirs, sources, depends, extra_postargs
    )
    arguments = self._get_cc_args(pp_opts, debug, extra_preargs)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda o: self._compile(o, *build[o], arguments, extra_postargs, pp_opts), build))
    return objects

CCompiler.compile = compile_side_by_side
options = {{"opt_level": "2", "debug_level": "0", "multi_file": True}}
modules = mypycify(sys.argv[2:], group_name={library!r}, target_dir=sys.argv[1], **options)
command = ["build_ext", "--build-lib", sys.argv[1], "--build-temp", sys.argv[1] + "/temp"]
setup(name="dataflower-native", py_modules=[], packages=[], ext_modules=modules, script_args=command)
"""


def sources() -> list[Path]:
    """What is compiled."""
    found = [path for pattern in MODULES for path in sorted(ROOT.glob(pattern))]
    return [path for path in found if path.name != "__init__.py"]


def compiled() -> list[Path]:
    """What has been compiled so far."""
    return sorted((ROOT / "dataflower").rglob(f"*{SUFFIX}"))


def stale() -> list[str]:
    """What is wrong with the compiled modules, in words; nothing if none are there."""
    there = compiled()
    if not there:
        return []
    oldest = min(path.stat().st_mtime for path in there)
    return [
        f"{path.relative_to(ROOT)} is newer than its compiled form"
        for path in sources()
        if path.stat().st_mtime > oldest
    ]


def remove() -> None:
    """Back to plain Python."""
    for path in compiled():
        path.unlink()
    library.remove()


def build() -> None:
    """Compile everything at once: calls between these modules then cost next to nothing."""
    remove()
    names = [str(path.relative_to(ROOT)) for path in sources()]
    with tempfile.TemporaryDirectory() as place:
        # The headers of a group lie in the folder of its package.
        env = {**os.environ, "PYTHONPATH": str(ROOT), "CPATH": str(Path(place, *LIBRARY.split(".")[:-1]))}
        command = [sys.executable, "-c", BUILD.format(library=LIBRARY), place, *names]
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}\nnothing was compiled; a C compiler and Python's headers are needed")
        for path in Path(place, "dataflower").rglob(f"*{SUFFIX}"):
            shutil.copy(path, ROOT / path.relative_to(place))


def main() -> int:
    """Compile, check or remove."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if a compiled module is older than its source")
    parser.add_argument("--remove", action="store_true", help="back to plain Python")
    options = parser.parse_args()
    if options.remove:
        remove()
    elif options.check:
        wrong = stale()
        if wrong:
            print("\n".join(wrong), "run `make native` again, or `make pure`", sep="\n", file=sys.stderr)
        return bool(wrong)
    else:
        build()
        print(f"{len(sources())} modules compiled")
        try:
            print(f"{library.build().relative_to(ROOT)} compiled")
        except DataflowerError as error:  # a C compiler will do for the modules
            print(f"language models decode with torch's operators: {error.message}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
