"""Generate the gRPC code that is checked in (`make proto`).

    python tools/generate_proto.py           write dataflower/gateway/_generated
    python tools/generate_proto.py --check   exit 1 if it is not what the .proto files say

Generate with grpcio-tools 1.81.x: what later versions write needs a protobuf that other
inference clients can't have yet.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from importlib import resources
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "dataflower" / "gateway" / "_generated"
PACKAGE = "dataflower.gateway._generated"
SOURCES = {"dataflower/v1/workflow.proto": "workflow", "inference/grpc_service.proto": "inference"}
"""File (its name in reflection) -> stem of the Python modules."""
GENERATOR = "1.81."


def generate() -> dict[str, str]:
    """File name -> text of everything in the generated package.

    Raises:
        RuntimeError: protoc failed, or another version of grpcio-tools is installed.
    """
    from grpc_tools import protoc

    if not version("grpcio-tools").startswith(GENERATOR):
        raise RuntimeError(f"grpcio-tools {GENERATOR}x is needed, {version('grpcio-tools')} is installed")
    files = {"__init__.py": '"""Generated from proto/ by tools/generate_proto.py; do not edit."""\n'}
    with tempfile.TemporaryDirectory() as folder:
        includes = [f"-I{PROTO}", f"-I{resources.files('grpc_tools') / '_proto'}"]
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", *includes, *outputs, *SOURCES]) != 0:
            raise RuntimeError("protoc failed")
        for source, stem in SOURCES.items():
            base = Path(folder) / source.removesuffix(".proto")
            for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
                files[stem + suffix] = relocate(Path(f"{base}{suffix}").read_text())
    return files


def relocate(text: str) -> str:
    """Make imports among the generated modules point into the package that holds them."""
    for source, stem in SOURCES.items():
        folder, _, name = source.removesuffix(".proto").rpartition("/")
        text = re.sub(
            rf"^from {re.escape(folder.replace('/', '.'))} import {name}_pb2\b",
            f"from {PACKAGE} import {stem}_pb2",
            text,
            flags=re.MULTILINE,
        )
    return text


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    files = generate()
    stale = [name for name, text in files.items() if not _same(TARGET / name, text)]
    if check:
        for name in stale:
            print(f"{TARGET.relative_to(ROOT) / name} is out of date: run `make proto`", file=sys.stderr)
        return 1 if stale else 0
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (TARGET / name).write_text(files[name])
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    raise SystemExit(main())
