"""Compile the modules on the way of a token to machine code with mypyc: `python -m tools.native`.

Python runs the same sources when nothing is compiled; compiled, a hop takes about half the time. In place by default,
and the decode step of language models (`dataflower.llm.kernels`) with it; `--remove` takes all of that away, `--check`
fails if a compiled module is older than its source. `--wheel DIR` makes a wheel that holds the modules and leaves the
checkout as it is; `setup.py` is the way there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
LIBRARY = "dataflower.native"
"""What the modules share; its name goes into the library's file name."""
SWITCH = "DATAFLOWER_NATIVE"
"""Environment variable; with 1 `setup.py` compiles."""
LEVEL = "DATAFLOWER_NATIVE_LEVEL"
"""Environment variable: what the C compiler is to optimise, 0 to 3. What is only tried need not be fast."""
# Not channel/plain.py, which walks through users' values: compiled code has no limit for recursion but the stack's end.
MODULES = (
    "dataflower/core/*.py",
    "dataflower/channel/board.py",
    "dataflower/channel/link.py",
    "dataflower/channel/tensor.py",
    "dataflower/container/attachments.py",
    "dataflower/container/batch.py",
    "dataflower/container/batch_unit.py",
    "dataflower/container/copies.py",
    "dataflower/container/data_unit.py",
    "dataflower/container/function_unit.py",
    "dataflower/container/late_views.py",
    "dataflower/container/outputs.py",
    "dataflower/container/overlap.py",
    "dataflower/container/relay.py",
    "dataflower/container/returns.py",
    "dataflower/container/running.py",
    "dataflower/container/stream.py",
    "dataflower/container/target.py",
    "dataflower/host/alarm.py",
    "dataflower/host/boards.py",
    "dataflower/host/engine.py",
    "dataflower/host/inputs.py",
    "dataflower/host/links.py",
    "dataflower/host/promises.py",
    "dataflower/host/recording.py",
    "dataflower/host/remote_peer.py",
    "dataflower/host/values.py",
)
PLAIN = ("__init__.py", "trace.py")
"""Not these: msgspec reads traces back by their annotations, of which compiled classes keep only the outermost type."""
SHIPPED = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "dataflower", "functions", "tools")
"""What a wheel is made from."""


def sources() -> list[Path]:
    """What is compiled. Raises SystemExit if a module of the list has moved."""
    found: list[Path] = []
    for pattern in MODULES:
        matching = [path for path in sorted(ROOT.glob(pattern)) if path.name not in PLAIN]
        if not matching:
            raise SystemExit(f"{pattern} is not there any more: mend MODULES in tools/native.py")
        found += matching
    return found


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
    from dataflower.llm.kernels import library

    library.remove()


def extensions(place: str) -> list[Any]:
    """What setuptools is to build, all in one: calls between these modules then cost next to nothing.

    C code goes to `place`. To be called in the root of the sources, by `setup.py`.
    """
    from mypyc.build import mypycify
    from setuptools._distutils.ccompiler import CCompiler  # type: ignore[attr-defined]

    CCompiler.compile = _compile_side_by_side
    # The headers of a group lie in the folder of its package.
    os.environ["CPATH"] = os.pathsep.join(
        filter(None, (os.path.join(place, *LIBRARY.split(".")[:-1]), os.environ.get("CPATH", "")))
    )
    names = [str(path.relative_to(ROOT)) for path in sources()]
    config = str(Path(__file__).with_suffix(".ini").relative_to(ROOT))
    return list(
        mypycify(
            ["--config-file", config, *names],
            group_name=LIBRARY,
            target_dir=place,
            opt_level=os.environ.get(LEVEL, "2"),
            debug_level="0",
            multi_file=True,
        )
    )


def _compile_side_by_side(self: Any, sources: list[str], output_dir: Any = None, *rest: Any, **named: Any) -> list[str]:
    """In place of setuptools' method, which compiles one file after the other."""
    order = ("macros", "include_dirs", "debug", "extra_preargs", "extra_postargs", "depends")
    given = dict.fromkeys(order) | dict(zip(order, rest, strict=False)) | named
    _, objects, extra, options, build = self._setup_compile(
        output_dir, given["macros"], given["include_dirs"], sources, given["depends"], given["extra_postargs"]
    )
    arguments = self._get_cc_args(options, given["debug"], given["extra_preargs"])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda o: self._compile(o, *build[o], arguments, extra, options), build))
    return list(objects)


def _run(command: list[str], **where: Any) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **where)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nnothing was compiled; a C compiler and Python's headers are needed")


def build() -> None:
    """Compile in place."""
    remove()
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", place, "--build-temp", place]
        _run(command, cwd=ROOT, env={**os.environ, SWITCH: "1", "DATAFLOWER_NATIVE_BUILD": place})
        for path in Path(place, "dataflower").rglob(f"*{SUFFIX}"):
            shutil.copy(path, ROOT / path.relative_to(place))


def _build_kernels() -> None:
    from dataflower.errors import DataflowerError
    from dataflower.llm.kernels import library

    try:
        print(f"{library.build().relative_to(ROOT)} compiled")
    except DataflowerError as error:  # a C compiler will do for the modules
        print(f"language models decode with torch's operators: {error.message}", file=sys.stderr)


def wheel(directory: Path) -> Path:
    """Make a wheel with the compiled modules, from a copy of the sources. Gives where it lies."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        copy, made = Path(place, "sources"), Path(place, "wheel")
        copy.mkdir()
        for name in SHIPPED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(ROOT / name, copy / name)
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir"]
        command = [sys.executable, "-m", "pip", "wheel", *options, str(made), str(copy)]
        _run(command, env={**os.environ, SWITCH: "1"})
        (found,) = made.glob("*.whl")
        return Path(shutil.copy(found, directory))


def main() -> int:
    """Compile, check, remove, or make a wheel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if a compiled module is older than its source")
    parser.add_argument("--remove", action="store_true", help="back to plain Python")
    parser.add_argument("--wheel", type=Path, metavar="DIR", help="make a wheel that holds them, in this folder")
    options = parser.parse_args()
    if options.remove:
        remove()
    elif options.check:
        wrong = stale()
        if wrong:
            print("\n".join(wrong), "run `make native` again, or `make pure`", sep="\n", file=sys.stderr)
        return bool(wrong)
    elif options.wheel is not None:
        print(wheel(options.wheel))
    else:
        build()
        print(f"{len(sources())} modules compiled")
        _build_kernels()
    return 0


if __name__ == "__main__":
    sys.exit(main())
