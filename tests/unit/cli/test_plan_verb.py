"""`dataflower plan`: tables, plan files, comparisons, reasons, and what it says when nothing keeps the SLO."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dataflower.cli.group import app
from dataflower.planner import parse_plan

FUNCTIONS = """
from dataflower import Stream, Text, function


@function(outputs={"word": Stream(Text())})
def words(text: str):
    yield from text.split()


@function(batch=True)
def size(word: list) -> list:
    return [len(one) for one in word]


def total(sizes: list) -> int:
    return sum(sizes)
"""
WORKFLOW = """\
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: NAME}
slo: {e2e_ms: 400, percentile: 99}
inputs: {text: string}
stages:
  split: {function: "counting:words", inputs: {text: inputs.text}}
  size: {function: "counting:size", inputs: {word: {each: split.word}}}
  add: {function: "counting:total", inputs: {sizes: {gather: size.out}}}
outputs: {out: add.out}
"""
PROFILE = """\
apiVersion: dataflower/v1
kind: Profile
workflow: NAME
device: cpu
items: {split: 3.0}
stages:
  split: {tasks: 1.0, most: 1, points: [{batch: 1, duration_ms: 5.0}]}
  size:
    tasks: 3.0
    most: 4
    points:
      - {batch: 1, duration_ms: 20.0}
      - {batch: 2, duration_ms: 24.0}
      - {batch: 4, duration_ms: 32.0}
      - {batch: 8, duration_ms: 50.0}
  add: {tasks: 1.0, most: 1, points: [{batch: 1, duration_ms: 2.0}]}
"""
PRICES = "hardware,price\ncpu,0.2\ngpu,2.0\n"
TABLE = "model,hardware,batch,duration_s\nnlp,gpu,1,0.004\nnlp,gpu,2,0.005\nnlp,gpu,4,0.006\n"


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Path("counting.py").write_text(FUNCTIONS)
    Path("profiles").mkdir()
    for name in ("count", "other"):
        Path(f"{name}.yaml").write_text(WORKFLOW.replace("NAME", name))
        Path(f"profiles/{name}.yaml").write_text(PROFILE.replace("NAME", name))
    Path("prices.csv").write_text(PRICES)
    Path("gpu.csv").write_text(TABLE)


def call(*args: str) -> Result:
    return CliRunner().invoke(app, ["plan", *args])


def test_a_table_of_stages_costs_and_headroom() -> None:
    result = call("count.yaml", "--rate", "20", "--prices", "prices.csv")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["stage", "budget"]
    assert [line.split()[0] for line in lines[1:4]] == ["split", "size", "add"]
    assert re.search(r"count: 20/s, 99 % of the invocations within 400 ms; .* ms to spare", result.stdout)
    assert re.search(r"[\d.]+ an hour, [\d.]+ for 1,000 requests", result.stdout)


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize("arrivals", ["poisson", "paced"])
def test_the_plan_on_stdout_is_a_plan_file(form: str, arrivals: str) -> None:
    result = call("count.yaml", "--rate", "20", "-o", form, "--arrivals", arrivals, "--out", "made/plan.yaml")
    assert result.exit_code == 0, result.output
    document = parse_plan(result.stdout, "stdout")
    assert (document.workflow, document.rate_per_s, document.slo_ms) == ("count", 20.0, 400.0)
    assert document.arrivals == arrivals
    assert set(document.stages) == {"split", "size", "add"}
    assert document.stages["size"].rate_per_s == 60.0
    assert parse_plan(Path("made/plan.yaml").read_text(), "plan.yaml") == document
    assert Path("made/plan.yaml").read_text().startswith("# Written by `dataflower plan`")


def test_other_devices_come_from_tables() -> None:
    args = ("count.yaml", "--rate", "20", "--profiles", "profiles/count.yaml", "--profiles", "gpu.csv")
    result = call(*args, "--prices", "prices.csv", "--model", "size=nlp", "--slo", "45ms", "-o", "json")
    assert result.exit_code == 0, result.output
    document = parse_plan(result.stdout, "stdout")
    assert {g.device for g in document.stages["size"].groups} == {"gpu"}
    assert document.slo_ms == 45.0


def test_batches_are_those_that_the_stage_takes() -> None:
    text = Path("count.yaml").read_text()
    Path("count.yaml").write_text(
        text.replace('"counting:size", inputs', '"counting:size", batch: {max_size: 2}, inputs')
    )
    batches = []
    for extra in ((), ("--batch-1",)):
        result = call("count.yaml", "--rate", "60", "--slo", "2s", "-o", "json", *extra)
        assert result.exit_code == 0, result.output
        document = parse_plan(result.stdout, "stdout")
        batches.append({g.batch for stage in document.stages.values() for g in stage.groups})
    assert batches == [{1, 2}, {1}]


def test_compare_adds_every_method_and_explain_every_reason() -> None:
    args = ("count.yaml", "--rate", "20", "--slo", "2s", "--arrivals", "paced")
    result = call(*args, "--compare", "--explain")
    assert result.exit_code == 0, result.output
    for name in ("ours", "clipper", "nexus", "inferline", "scrooge", "harpagon"):
        assert re.search(rf"^{name} +[\d.]+", result.stdout, re.MULTILINE), name
    assert "why" in result.stdout
    assert "for evenly spaced calls" in result.stdout
    assert "promise nothing" not in result.stdout
    random = call("count.yaml", "--rate", "20", "--slo", "2s", "--compare")
    assert "for poisson arrivals" in " ".join(random.stdout.split())
    printed = call(*args, "--compare", "--explain", "-o", "json").stdout
    assert parse_plan(printed, "stdout").stages.keys() == {"split", "size", "add"}
    data = json.loads(printed)
    assert {row["arrivals"] for row in data["compared"]} == {"paced"}
    costs = {row["method"]: row["use"] for row in data["compared"]}
    assert all(costs["ours"] <= cost * (1 + 1e-9) for cost in costs.values())
    assert [r["stage"] for r in data["reasons"]] == ["split", "size", "add"]


def test_reasons_name_the_price_of_a_millisecond() -> None:
    data = json.loads(call("count.yaml", "--rate", "30", "--explain", "-o", "json").stdout)
    (size,) = [r for r in data["reasons"] if r["stage"] == "size"]
    assert size["quicker_ms"] is None or size["costs_per_ms"] > 0
    assert size["cheaper_ms"] is None or size["saves_per_ms"] > 0
    assert any(r["worth_per_ms"] > 0 or r["cheaper_ms"] is None for r in data["reasons"])


@pytest.mark.parametrize("arrivals", ["poisson", "paced"])
def test_when_nothing_keeps_the_slo_it_says_what_would(arrivals: str) -> None:
    result = call("count.yaml", "--rate", "20", "--slo", "26ms", "--arrivals", arrivals)
    assert result.exit_code == 4
    assert "stage size binds, on split -> size -> add" in result.stderr
    slo = re.search(r"nearest feasible SLO at this rate: --slo (\S+)", result.stderr)
    assert slo is not None
    assert call("count.yaml", "--rate", "20", "--slo", slo[1], "--arrivals", arrivals).exit_code == 0
    assert "nearest feasible rate with this SLO: none" in result.stderr
    data = call("count.yaml", "--rate", "20", "--slo", "26ms", "--arrivals", arrivals, "-o", "json")
    assert data.exit_code == 4
    assert json.loads(data.stdout)["nearest_slo_ms"] == float(slo[1].removesuffix("ms"))


def test_the_nearest_rate_is_feasible_as_it_is_printed() -> None:
    Path("batchy.csv").write_text("model,hardware,batch,duration_s\n" + "".join(f"m,cpu,{b},0.02\n" for b in (1, 2, 4)))
    profile = PROFILE.replace("NAME", "count").replace("duration_ms: 20.0", "duration_ms: 20.0")
    Path("p.yaml").write_text(profile)
    harsh = ("count.yaml", "--profiles", "p.yaml", "--slo", "29ms", "--arrivals", "paced")
    result = call(*harsh, "--rate", "5")
    if result.exit_code == 4:
        rate = re.search(r"--rate (\S+)", result.stderr)
        if rate is not None:
            assert call(*harsh, "--rate", rate[1]).exit_code == 0
    else:
        assert result.exit_code == 0


def test_an_slo_below_the_least_latency_is_blamed_on_its_line() -> None:
    Path("count.yaml").write_text(Path("count.yaml").read_text().replace("e2e_ms: 400", "e2e_ms: 5"))
    result = call("count.yaml", "--rate", "20")
    assert result.exit_code == 4
    assert re.search(r"^count\.yaml:4:15: no plan keeps 5 ms at 20/s$", result.stderr, re.MULTILINE)


def test_several_workflows_share_machines() -> None:
    args = ("count.yaml", "other.yaml", "--rate", "count=3", "--rate", "2", "--arrivals", "paced")
    result = call(*args, "--out", "plans")
    assert result.exit_code == 0, result.output
    assert "shared machine" in result.stdout
    assert "all together:" in result.stdout
    documents = [parse_plan(Path(f"plans/{name}.yaml").read_text(), name) for name in ("count", "other")]
    assert [d.rate_per_s for d in documents] == [3.0, 2.0]
    together = sum(d.cost_per_hour for d in documents)
    alone = 0.0
    for name, rate in (("count", "3"), ("other", "2")):
        data = json.loads(call(f"{name}.yaml", "--rate", rate, "--arrivals", "paced", "-o", "json").stdout)
        alone += data["cost_per_hour"]
    assert together < alone
    assert {s.workflow for d in documents for m in d.shared for s in m.shares} == {"count", "other"}


def test_a_recording_of_arrivals() -> None:
    Path("arrivals.csv").write_text("timestamp\n" + "".join(f"{i * 0.05 + (i % 7) * 0.01:.3f}\n" for i in range(400)))
    result = call("count.yaml", "--rate", "20", "--arrivals", "arrivals.csv", "-o", "json")
    assert result.exit_code == 0, result.output
    assert parse_plan(result.stdout, "stdout").arrivals == "traced"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--rate", "0"), 2, "--rate: count needs a rate greater than 0"),
        (("--rate", "-1"), 2, "--rate: -1 must be"),
        (("--rate", "x"), 2, "--rate: 'x' is not a number"),
        (("--rate", "cuont=3"), 2, "--rate: no workflow 'cuont'"),
        (("--rate", "1", "--slo", "soon"), 2, "--slo: 'soon' is not a duration"),
        (("--rate", "1", "--arrivals", "posson"), 2, "did you mean 'poisson'?"),
        (("--rate", "1", "--billing", "use"), 2, "--billing use needs --arrivals paced"),
        (("--rate", "1", "--items", "split"), 2, "--items: 'split' is not of the form STAGE=N"),
        (("--rate", "1", "--share", "a.b=2"), 2, "--share: 2 must be"),
        (("--rate", "1", "--items", "splt=2"), 1, "no fan-out 'splt'"),
        (("--rate", "1", "--profiles", "none.yaml"), 1, "no file 'none.yaml'"),
        (("--rate", "1", "--device", "tpu"), 1, "no profile on device 'tpu'"),
        (("--rate", "1", "--profiles", "gpu.csv"), 1, "no profile of stage 'split': measure it"),
        (("--rate", "1", "--profiles", "gpu.csv", "--model", "size=nlp"), 1, "gpu.csv:2:2: unknown device 'gpu'"),
    ],
)
def test_bad_options_are_named(args: tuple[str, ...], code: int, message: str) -> None:
    result = call("count.yaml", *args)
    assert (result.exit_code, message in result.output) == (code, True), result.output


def test_a_workflow_that_was_never_profiled_says_how_to() -> None:
    Path("profiles/count.yaml").unlink()
    result = call("count.yaml", "--rate", "1")
    assert result.exit_code == 1
    assert "no profile of count: measure it with `dataflower profile count.yaml`" in result.stderr


def test_a_bad_price_names_file_and_line() -> None:
    Path("prices.csv").write_text("hardware,price\ncpu,-2\n")
    result = call("count.yaml", "--rate", "1", "--prices", "prices.csv")
    assert result.exit_code == 1
    assert "prices.csv:2:2: price of cpu must be greater than 0, not -2" in result.stderr
