"""Wrong uses of `dataflower bench`: said before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataflower.cli.group import app

NAP = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: nap}
inputs: {text: {type: string}}
stages:
  first: {function: "stock:nap", inputs: {text: inputs.text}}
outputs: {out: first.out}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stock.py").write_text("def nap(text: str) -> str:\n    return text\n")
    (tmp_path / "nap.yaml").write_text(NAP)
    (tmp_path / "trace.csv").write_text("time\n1\n2\n3\n")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ((), 2, "which workflow?"),
        (("nap.yaml", "--server", "127.0.0.1:1"), 2, "dataflower apply nap.yaml"),
        (("nap", "--local"), 2, "there is no file 'nap'"),
        (("nap", "--server", "127.0.0.1:1", "--local"), 2, "exclude each other"),
        (("nap", "--profile", "fast"), 2, "--profile goes with a workflow file"),
        (("nap.yaml", "--rate", "0"), 2, "--rate must be greater than 0"),
        (("nap.yaml", "--arrivals", "ramp", "--rate", "3"), 2, "wants --rate-to"),
        (("nap.yaml", "--arrivals", "burst", "--rate-to", "3", "--burst", "20s"), 1, "don't fit"),
        (("nap.yaml", "--duration", "soon"), 2, "--duration: 'soon' is not a duration"),
        (("nap.yaml", "--duration", "0"), 2, "--duration must be longer than 0"),
        (("nap.yaml", "--deadline", "0s"), 2, "--deadline must be longer than 0"),
        (("nap", "--server", "127.0.0.1"), 2, "--server: expected HOST:PORT"),
        (("nap.yaml", "--trace", "none.csv"), 1, "none.csv"),
        (("nap.yaml", "--trace", "trace.csv", "--arrivals", "poisson"), 2, "leave out --arrivals poisson"),
        (("nap.yaml", "--arrivals", "trace"), 2, "wants --trace FILE"),
        (("nap.yaml",), 1, "'nap' is missing"),
        (("nap.yaml", "txt=hi"), 2, "no input 'txt'"),
        (("nap.yaml", "text=hi", "--budget", "third=4s"), 2, "no stage 'third'"),
        (("nap.yaml", "text=hi", "--slo", "p99=4s"), 2, "known: e2e, ttft, itl, tpot"),
        (("--compare", "nap.yaml", "nap.yaml"), 1, "is no report"),
        (("nap.yaml", "--compare", "a", "b"), 2, "leave out the workflow"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, args: tuple[str, ...], code: int, said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *args])
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
