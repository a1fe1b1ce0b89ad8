"""The generated gRPC code is what the .proto files say."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_generated_code_is_up_to_date() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "generate_proto.py"))
    wanted = tool["generate"]()
    there = {path.name: path.read_text() for path in tool["TARGET"].iterdir() if path.is_file()}
    assert there == wanted
