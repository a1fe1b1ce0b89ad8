"""The main job as `make demo` runs it: a real video through all its stages, in the isolation that is the default."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parent.parent.parent


def test_the_video_is_described_and_its_clip_and_picture_are_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dataflower.cli", "run", "workflows/video.yaml", "-o", "json"]
    done = subprocess.run(
        [*command, "fps=0.5", f"folder={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout)["outputs"]
    assert len("".join(outputs["answer"])) > 20
    assert outputs["report"]["frames"] == 5
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".png"}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())
