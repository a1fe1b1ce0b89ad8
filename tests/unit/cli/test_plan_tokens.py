"""`dataflower plan` for workflows with a language model: both objectives, tables, files, and what is nearest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dataflower.cli.group import app
from dataflower.cli.workflows import beside, load_file
from dataflower.config.compose import compose
from dataflower.planner import parse_plan
from dataflower.planner.dispatch import dispatch_plan, tuned
from dataflower.planner.simulate import at_a_time

FUNCTIONS = """
from dataflower import Json, Stream, function


@function(batch=True)
def look(request: list) -> list:
    return request


@function(outputs={"deltas": Stream(Json())})
class Tell:
    def setup(self, max_sequences: int = 16, step_tokens: int = 512, ttft_ms: float | None = None) -> None:
        self.limits = max_sequences, step_tokens, ttft_ms

    def __call__(self, request: dict):
        yield {"text": "hello"}


def check(deltas: Stream) -> int:
    return len(list(deltas))
"""
CHAT = """\
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: chat}
slo:
  ttft_ms: 800
  tpot_ms: 60
inputs: {request: json}
stages:
  tell: {function: "telling:Tell", inputs: {request: inputs.request}, scaling: {max_ongoing_requests: 3}}
outputs: {deltas: tell.deltas}
"""
MIXED = """\
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: mixed}
slo: {e2e_ms: 6000, ttft_ms: 900, tpot_ms: 60}
inputs: {request: json}
stages:
  look: {function: "telling:look", inputs: {request: inputs.request}}
  tell: {function: "telling:Tell", inputs: {request: look.out}}
  check: {function: "telling:check", inputs: {deltas: tell.deltas}}
outputs: {deltas: tell.deltas, count: check.out}
"""
TELL = """\
  tell:
    points: [{batch: 1, duration_ms: 1200.0}]
    tokens:
      sequences: 16
      step_tokens: 512
      kv_tokens: 20000
      context: 2048
      takes: [max_sequences, step_tokens, ttft_ms]
      prompt: {mean: 100, high: 400}
      output: {mean: 30, high: 60}
      prefill:
        - {tokens: 64, duration_ms: 52.0}
        - {tokens: 256, duration_ms: 150.0}
        - {tokens: 512, duration_ms: 290.0}
      decode:
        - {batch: 1, context: 64, duration_ms: 20.0}
        - {batch: 4, context: 64, duration_ms: 24.0}
        - {batch: 16, context: 64, duration_ms: 40.0}
        - {batch: 1, context: 1024, duration_ms: 22.0}
"""
HEAD = "apiVersion: dataflower/v1\nkind: Profile\nworkflow: NAME\ndevice: cpu\nstages:\n"
OTHERS = """\
  look:
    points: [{batch: 1, duration_ms: 30.0}, {batch: 2, duration_ms: 40.0}, {batch: 4, duration_ms: 60.0}]
  check: {points: [{batch: 1, duration_ms: 5.0}]}
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Path("telling.py").write_text(FUNCTIONS)
    Path("chat.yaml").write_text(CHAT)
    Path("mixed.yaml").write_text(MIXED)
    Path("profiles").mkdir()
    Path("profiles/chat.yaml").write_text(HEAD.replace("NAME", "chat") + TELL)
    Path("profiles/mixed.yaml").write_text(HEAD.replace("NAME", "mixed") + TELL + OTHERS)


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["plan", *args])
    assert result.exit_code == code, result.output
    return result


def test_the_table_has_what_is_expected_beside_what_is_promised() -> None:
    shown = call("chat.yaml", "--rate", "4").stdout
    row = next(line for line in shown.splitlines() if "100 to 400" in line)
    assert re.match(r"tell +\d+ +\d+ +(512|256|128|64|32) +100 to 400 +30 to 60 +[\d.]+ of 720.0 +[\d.]+ of 54.0", row)
    assert re.search(r"tell: first token within [\d.]+ ms of 800 ms, further ones [\d.]+ ms of 60 ms", shown)


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_the_plan_file_says_how_the_model_runs_and_the_engine_takes_it(form: str) -> None:
    document = parse_plan(call("chat.yaml", "--rate", "4", "-o", form).stdout, "plan")
    tokens = document.stages["tell"].tokens
    assert tokens is not None
    assert document.slo_ms == pytest.approx(800 + 59 * 60)
    assert tokens.ttft_ms <= (tokens.ttft_limit_ms or 0) == 720.0
    assert tokens.tpot_ms <= (tokens.tpot_limit_ms or 0) == 54.0
    assert tokens.params == {"max_sequences": tokens.sequences, "step_tokens": tokens.step_tokens, "ttft_ms": 720.0}
    file = Path("chat.yaml")
    workflow, _ = load_file(file, beside(compose({}, file=None).config, [file]))
    (stage,) = dispatch_plan(document, workflow).stages
    assert stage.groups[0].replicas == document.stages["tell"].groups[0].replicas
    assert stage.capacity >= 4.0
    run = tuned(workflow, document).stages["tell"]
    assert run.scaling.concurrency == 2 * tokens.sequences  # as many wait in the runner, which refuses by their weight
    assert at_a_time(run) == tokens.sequences != at_a_time(workflow.stages["tell"])
    assert run.params == tokens.params
    assert tuned(workflow, None) is workflow


def test_the_lengths_of_prompts_and_answers_count() -> None:
    def replicas(*args: str) -> int:
        document = parse_plan(call("chat.yaml", "--rate", "8", "-o", "json", *args).stdout, "plan")
        return sum(group.replicas for group in document.stages["tell"].groups)

    usual = replicas()
    assert replicas("--prompt-tokens", "20:50", "--output-tokens", "tell=5:10") < usual
    assert replicas("--prompt-tokens", "tell=200:800") > usual
    assert replicas("--output-tokens", "90") > usual


def test_stages_before_the_model_share_the_time_to_the_first_token() -> None:
    shown = call("mixed.yaml", "--rate", "3", "-o", "json").stdout
    document = parse_plan(shown, "plan")
    tokens = document.stages["tell"].tokens
    assert tokens is not None
    before = max(group.worst_ms for group in document.stages["look"].groups)
    assert before + tokens.ttft_ms <= 900 * 0.9 * (1 + 1e-6)
    assert tokens.ttft_limit_ms is not None
    assert tokens.ttft_limit_ms < 810.0
    answer = tokens.ttft_ms + 59 * tokens.tpot_ms
    assert document.stages["tell"].groups[0].worst_ms == pytest.approx(answer)
    assert sum(stage.budget_ms for stage in document.stages.values()) <= 6000 * 0.9 * (1 + 1e-6)


def test_a_stage_with_a_model_counts_in_an_end_to_end_objective_alone() -> None:
    text = Path("mixed.yaml").read_text().replace(", ttft_ms: 900, tpot_ms: 60", "")
    Path("mixed.yaml").write_text(text)
    document = parse_plan(call("mixed.yaml", "--rate", "3", "-o", "json").stdout, "plan")
    tokens = document.stages["tell"].tokens
    assert tokens is not None
    assert tokens.ttft_limit_ms is None
    assert tokens.ttft_ms + 59 * tokens.tpot_ms <= document.stages["tell"].budget_ms
    tight = call("mixed.yaml", "--rate", "3", "--slo", "900ms", code=4).output
    slo = re.search(r"nearest feasible SLO at this rate: --slo (\S+)", tight)
    assert slo is not None
    call("mixed.yaml", "--rate", "3", "--slo", slo[1])


@pytest.mark.parametrize("file", ["chat.yaml", "mixed.yaml"])
@pytest.mark.parametrize(
    "asked", [("--ttft", "150ms"), ("--tpot", "15ms"), ("--ttft", "90", "--tpot", "9", "--itl", "30")]
)
def test_what_is_called_nearest_is_feasible_as_it_is_printed(file: str, asked: tuple[str, ...]) -> None:
    shown = call(file, "--rate", "3", *asked, code=4).output
    assert re.search(rf"{file}:\d+:\d+: no plan keeps ttft [\d.]+ ms, tpot [\d.]+ ms", shown)
    nearest = re.search(r"nearest feasible objectives at this rate: (--.*)", shown)
    assert nearest is not None
    call(file, "--rate", "3", "--slo", "30s", *nearest[1].split())
    data = json.loads(call(file, "--rate", "3", *asked, "-o", "json", code=4).stdout)
    assert (data["feasible"], data["stage"]) == (False, "tell")
    assert data["nearest_ttft_ms"] >= data["ttft_ms"]
    assert data["nearest_tpot_ms"] >= data["tpot_ms"]


@pytest.mark.parametrize(
    ("change", "args", "said"),
    [
        (("tpot_ms: 60", "percentile: 95"), (), "state `slo.ttft_ms` and `slo.tpot_ms`"),
        (("", ""), ("--prompt-tokens", "look=3"), "no stage 'look'"),
        (("", ""), ("--prompt-tokens", "50:20"), "can't be fewer than the mean"),
        (("", ""), ("--output-tokens", "many"), "'many' is not a number"),
        (("", ""), ("--ttft", "0"), "--ttft: 0 must be greater than 0"),
    ],
)
def test_what_does_not_fit_together_is_said(change: tuple[str, str], args: tuple[str, ...], said: str) -> None:
    Path("chat.yaml").write_text(CHAT.replace(*change))
    assert said in call("chat.yaml", "--rate", "1", *args, code=2).output


def test_objectives_for_tokens_need_a_profile_of_tokens() -> None:
    text = Path("profiles/chat.yaml").read_text()
    Path("profiles/chat.yaml").write_text(text[: text.index("    tokens:")])
    shown = call("chat.yaml", "--rate", "1", code=2).output
    assert "slo.ttft_ms needs a language model whose answers leave the workflow as a stream" in shown


def test_a_stage_after_the_first_token_needs_an_objective_for_the_whole() -> None:
    Path("mixed.yaml").write_text(MIXED.replace("e2e_ms: 6000, ", ""))
    shown = call("mixed.yaml", "--rate", "1", code=2).output
    assert "stage 'check' is not on the way to the first token" in shown


def test_more_than_the_context_holds_is_refused() -> None:
    shown = call("chat.yaml", "--rate", "1", "--prompt-tokens", "1000:3000", code=1).output
    assert "do not fit into the model's context of 2048" in shown


@pytest.mark.parametrize(
    "args",
    [
        ("--explain",),
        ("--compare",),
        ("--tight",),
        ("--arrivals", "paced", "--explain"),
        ("--arrivals", "paced", "--billing", "use"),
        ("--median", "--alone", "--margin", "0"),
        ("--percentile", "95"),
    ],
)
def test_every_way_of_planning_knows_of_tokens(args: tuple[str, ...]) -> None:
    shown = call("mixed.yaml", "--rate", "3", *args).stdout
    assert "tell: first token within" in shown
    stages = json.loads(call("mixed.yaml", "--rate", "3", *args, "-o", "json").stdout)["stages"]
    assert stages["tell"]["tokens"]["ttft_ms"] <= stages["tell"]["tokens"]["ttft_limit_ms"]
    assert "tokens" not in stages["look"]


def test_workflows_with_models_are_planned_together_and_keep_their_machines() -> None:
    shown = call("mixed.yaml", "chat.yaml", "--rate", "2", "-o", "json").stdout
    for data in json.loads(shown):
        document = parse_plan(json.dumps(data), "plan")
        assert document.stages["tell"].tokens is not None
        assert all(share.stage != "tell" for machine in document.shared for share in machine.shares)
