"""The client verbs against a gateway in front of a fake host."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dataflower.cli.group import app
from dataflower.clock import SystemClock
from dataflower.errors import InvalidArgument
from dataflower.gateway.server import serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.host.api import ReplanDecision, ReplanOutcome, ReplanStatus
from dataflower.planner import parse_plan
from dataflower.spec.function import Json, Kind, Port, PortType, Tensor, Text
from dataflower.spec.workflow import Slo, Workflow
from dataflower.testing.fake_host import FakeHost, fake_workflow


@dataclass
class Server:
    """A gateway on a loop in a thread of its own."""

    address: str
    host: FakeHost

    def __call__(self, *args: str, input_: str | None = None) -> Result:
        verb, *rest = args
        return CliRunner().invoke(app, [verb, "--server", self.address, *rest], input=input_)


def load(text: str, file: str) -> Workflow:
    if "broken" in text:
        raise InvalidArgument(f"{file}:1:1: broken")
    return fake_workflow(text.rsplit(maxsplit=1)[-1])


@pytest.fixture
def server() -> Iterator[Server]:
    host = FakeHost()
    host.add("echo", lambda text: text, (Port("text", Text()),), (Port("out", Text()),))
    host.add("count", _count, (Port("n", PortType(Kind.INT)),), (Port("number", Json(), stream=True),))
    host.add("words", _words, (Port("n", PortType(Kind.INT)),), (Port("answer", Text(), stream=True),))
    host.add("fail", _fail)
    host.add("wait", _wait)
    host.add("total", lambda x: float(x.sum()), (Port("x", Tensor("FP32")),), (Port("out", PortType(Kind.FLOAT)),))
    ready: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = []
    up = threading.Event()

    async def main() -> None:
        stop = asyncio.Event()
        async with await serve(host, GatewayConfig(port=0), load=load) as gateway:
            ready.append((asyncio.get_running_loop(), stop, f"127.0.0.1:{gateway.grpc_port}"))
            up.set()
            await stop.wait()
            await host.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert up.wait(60)
    loop, stop, address = ready[0]
    yield Server(address, host)
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


def _count(n: int) -> Iterator[int]:
    yield from range(n)


def _words(n: int) -> Iterator[str]:
    yield from (f"w{i} " for i in range(n))


def _fail() -> None:
    raise ValueError("no luck")


async def _wait() -> None:
    await asyncio.Event().wait()


def test_invoke_prints_the_result(server: Server) -> None:
    result = server("invoke", "echo", "text=5")
    assert result.exit_code == 0
    assert result.stdout.split() == ["out", "5"]
    assert "ms" in result.stderr


def test_quiet_prints_the_result_only(server: Server) -> None:
    result = server("invoke", "echo", "text=hello", "-q")
    assert (result.stdout.split(), result.stderr) == (["out", "hello"], "")


def test_invoke_reads_tensors(server: Server) -> None:
    result = server("invoke", "total", "x=[[1, 2], [3, 4]]", "-o", "json")
    assert json.loads(result.stdout)["outputs"] == {"out": 10.0}


def test_text_of_a_stream_is_joined(server: Server) -> None:
    assert server("invoke", "words", "n=3").stdout == "answer: w0 w1 w2 \n"


def test_items_of_a_stream_have_a_line_each(server: Server) -> None:
    assert server("invoke", "count", "n=2").stdout == "number[0]: 0\nnumber[1]: 1\n"


@pytest.mark.parametrize("options", [(), ("--stream",), ("--no-stream",)])
def test_json_holds_the_whole_stream(server: Server, options: tuple[str, ...]) -> None:
    data = json.loads(server("invoke", "count", "n=3", "-o", "json", *options).stdout)
    assert data["outputs"] == {"number": [0, 1, 2]}
    assert data["state"] == "succeeded"


def test_outputs_stand_in_the_order_of_the_file_and_text_is_joined_everywhere(server: Server) -> None:
    ports = tuple(Port(name, Text()) for name in "zbya")
    server.host.add("many", lambda: dict.fromkeys("abyz", "x"), (), ports)
    shown = server("invoke", "many").stdout
    assert [line.split()[0] for line in shown.splitlines()] == list("zbya")
    assert list(json.loads(server("invoke", "many", "-o", "json").stdout)["outputs"]) == list("zbya")
    server("invoke", "words", "n=3", "--async", "--id", "said")
    assert "answer w0 w1 w2" in " ".join(server("status", "said", "--wait").stdout.split())
    assert "answer w0 w1 w2" in " ".join(server("invoke", "words", "n=3", "--no-stream").stdout.split())


def test_tables_in_a_pipe_have_no_trailing_blanks(server: Server) -> None:
    assert all(line == line.rstrip() for line in server("ls").stdout.splitlines())


def test_a_failure_names_stage_and_kind(server: Server) -> None:
    result = server("invoke", "fail")
    assert result.exit_code == 1
    assert "ValueError" in result.stderr
    assert "no luck" in result.stderr


def test_a_failure_is_data_too(server: Server) -> None:
    result = server("invoke", "fail", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failure"]["kind"] == "ValueError"


def test_the_deadline_ends_a_call(server: Server) -> None:
    result = server("invoke", "wait", "--deadline", "200ms")
    assert result.exit_code == 1
    assert "DEADLINE_EXCEEDED" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("invoke", "echo"), "text"),
        (("invoke", "count", "n=many"), "takes int"),
        (("invoke", "ecko", "text=1"), "ecko"),
        (("status", "nothing"), "no workflow and no invocation 'nothing'"),
        (("trace", "nothing"), "nothing"),
        (("cancel", "nothing"), "nothing"),
        (("rm", "nothing"), "nothing"),
        (("ls", "nothing"), "nothing"),
    ],
)
def test_mistakes_are_one_line_without_traceback(server: Server, args: tuple[str, ...], message: str) -> None:
    result = server(*args)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("echo", "txt=1"), "no input 'txt'"),
        (("echo", "text"), "not of the form name=value"),
        (("echo", "text=1", "text=2"), "given twice"),
        (("echo", "text=1", "--deadline", "soon"), "--deadline"),
    ],
)
def test_wrong_usage_of_a_call_ends_with_2(server: Server, args: tuple[str, ...], message: str) -> None:
    result = server("invoke", *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_async_returns_an_id_that_status_knows(server: Server) -> None:
    submitted = server("invoke", "echo", "text=later", "--async", "--id", "job-1")
    assert submitted.stdout.strip() == "job-1"
    result = server("status", "job-1", "--wait", "-o", "json")
    data = json.loads(result.stdout)
    assert (data["state"], data["outputs"]) == ("succeeded", {"out": "later"})
    assert result.exit_code == 0


def test_cancel_stops_what_runs(server: Server) -> None:
    server("invoke", "wait", "--async", "--id", "job-2")
    assert "cancelled" in server("cancel", "job-2").stdout
    assert server("status", "job-2").exit_code == 1


def test_ls_shows_workflows_and_invocations(server: Server) -> None:
    assert [row["name"] for row in json.loads(server("ls", "-o", "json").stdout)] == sorted(server.host._workflows)
    server("invoke", "echo", "text=a", "--id", "job-3")
    assert "job-3" in server("ls", "echo").stdout
    assert server("ls", "-q").stdout.splitlines() == sorted(server.host._workflows)
    assert "job-3" in server("ls", "echo", "-q").stdout.splitlines()
    assert json.loads(server("ls", "-i", "-n", "1", "-o", "json").stdout)[0]["invocation"] == "job-3"


def test_status_of_a_workflow_names_its_ports(server: Server) -> None:
    result = server("status", "count")
    assert "inputs:  n: int" in result.stderr
    assert "outputs: number: stream of json" in result.stderr


def test_status_of_the_server(server: Server) -> None:
    data = json.loads(server("status", "-o", "json").stdout)
    assert len(data["workflows"]) == 6


def test_invocations_are_found_by_the_beginning_of_their_id(server: Server) -> None:
    for name in ("abc-1", "abd-2"):
        server("invoke", "echo", "text=a", "--id", name)
    assert "abc-1" in server("status", "abc").stdout
    assert "abc-1" in server("trace", "abc", "-o", "json").stdout
    assert "abd-2" in server("cancel", "abd").stdout
    several = server("status", "ab")
    assert several.exit_code == 1
    assert "2 invocations begin with 'ab': abd-2, abc-1" in several.stderr


def test_the_slo_is_judged_by_every_verb_that_shows_a_call(server: Server) -> None:
    assert server("invoke", "echo", "text=a", "--check-slo").exit_code == 2  # nothing is promised yet
    _promise(server, "echo", Slo(e2e_ms=60_000))
    called = server("invoke", "echo", "text=a", "--id", "kept", "--check-slo")
    assert (called.exit_code, "SLO e2e" in called.stderr) == (0, True)
    for verb in ("trace", "status"):
        shown = server(verb, "kept")
        assert "SLO e2e" in shown.stderr
        assert "met" in shown.stderr
    _promise(server, "echo", Slo(e2e_ms=0.001))
    missed = server("invoke", "echo", "text=a", "--check-slo", "-o", "json")
    assert (missed.exit_code, json.loads(missed.stdout)["slo"]["met"]) == (3, False)
    assert server("invoke", "echo", "text=a").exit_code == 0


def _promise(server: Server, name: str, slo: Slo) -> None:
    status = server.host._workflows[name]
    server.host._workflows[name] = replace(status, workflow=replace(status.workflow, slo=slo))


PLAN = """kind: Plan
workflow: fresh
rate_per_s: 1
slo_ms: 400
percentile: 100
arrivals: paced
billing: integer
cost_per_hour: 1
cost_per_1000: 0.3
worst_ms: 200
stages:
  only:
    budget_ms: 400
    rate_per_s: 1
    groups:
      - {device: cpu, batch: 1, machines: 1, replicas: 1, rate_per_s: 1, duration_ms: 100, timeout_ms: 0, worst_ms: 200}
"""


def test_apply_hands_the_plan_over_and_takes_it_back(server: Server, tmp_path: Path) -> None:
    file, plan = tmp_path / "w.yaml", tmp_path / "plan.yaml"
    file.write_text("fresh")
    plan.write_text(PLAN)
    for options, expected in (((), ""), (("--plan", str(plan)), PLAN), ((), PLAN), (("--no-plan",), "")):
        done = server("apply", str(file), *options)
        assert done.exit_code == 0, done.output
        assert server.host.workflow("fresh").plan == expected
    for wrong in (("--plan", str(plan), "--no-plan"), (str(file), "--plan", str(plan))):
        assert server("apply", str(file), *wrong).exit_code == 2


def test_an_input_without_end_is_refused_by_the_servers_limit(server: Server) -> None:
    done = server("invoke", "echo", "text=@/dev/zero")
    assert done.exit_code == 1
    assert "input 'text': /dev/zero is larger than the server's max_message_bytes, 67108864, allows" in done.stderr


@pytest.mark.parametrize("text", ["42", "kind: Plan", "{}"])
def test_a_file_that_is_no_plan_is_named(server: Server, tmp_path: Path, text: str) -> None:
    file, plan = tmp_path / "w.yaml", tmp_path / "my plan.yaml"
    file.write_text("fresh")
    plan.write_text(text)
    done = server("apply", str(file), "--plan", str(plan))
    assert done.exit_code == 1
    assert f"{plan}:1:1: " in done.stderr
    assert "fresh" not in server("ls").stdout


BASED = """apiVersion: dataflower/v1
kind: Plan
workflow: fresh
rate_per_s: 20
slo_ms: 400
percentile: 100
arrivals: paced
billing: integer
cost_per_hour: 1
cost_per_1000: 0.01
worst_ms: 390
stages:
  b:
    budget_ms: 400
    rate_per_s: 20
    groups:
      - {device: cpu, batch: 4, machines: 2, replicas: 2, rate_per_s: 20, duration_ms: 200, timeout_ms: 195,
         worst_ms: 390}
basis:
  options: {billing: integer}
  devices: {cpu: {price: 1}}
  stages: {b: {points: {cpu: [{batch: 4, duration_ms: 200}]}}}
"""


def test_apply_says_whether_the_plan_follows_the_traffic(server: Server, tmp_path: Path) -> None:
    file, plan = tmp_path / "w.yaml", tmp_path / "plan.yaml"
    file.write_text("fresh")
    plan.write_text(BASED)
    refused = server("apply", str(file), "--replan", "on")
    assert refused.exit_code == 1
    assert "fresh@1 is run without a plan: give it one with --plan" in refused.output
    for options, mode in (
        (("--plan", str(plan), "--replan", "dry-run"), "dry-run"),
        (("--replan", "on"), "on"),
        ((), "on"),
        (("--replan", "off"), "off"),
    ):
        done = server("apply", str(file), *options)
        assert done.exit_code == 0, done.output
        assert parse_plan(server.host.workflow("fresh").plan, "plan").replan.value == mode
    plan.write_text(BASED.partition("basis:")[0])
    refused = server("apply", str(file), "--plan", str(plan), "--replan", "on")
    assert refused.exit_code == 1
    assert "does not say what it was made from (`basis`)" in refused.output
    for wrong in (("--replan", "on", "--no-plan"), ("--replan", "perhaps")):
        assert server("apply", str(file), *wrong).exit_code == 2


def test_status_shows_how_the_plan_follows_the_traffic(server: Server) -> None:
    def follows(**changes: object) -> None:
        status = server.host._workflows["echo"]
        replanning = ReplanStatus(False, 20.0, **changes)  # type: ignore[arg-type]
        server.host._workflows["echo"] = replace(status, replanning=replanning)

    assert "plan:" not in server("status", "echo").stderr
    follows()
    assert "for 20/s, follows the traffic: not measured yet" in server("status", "echo").stderr
    last = ReplanDecision(
        SystemClock().wall() - 90,
        50.6,
        44.0,
        "more than planned",
        ReplanOutcome.APPLIED,
        "2 -> 4 containers for 50.6/s",
    )
    follows(measured_per_s=43.5, last=last)
    shown = server("status", "echo").stderr
    assert "follows the traffic: 43.5/s lately" in shown
    assert "1 min ago: more than planned (44/s): plan for 50.6/s: done: 2 -> 4 containers for 50.6/s" in shown
    data = json.loads(server("status", "echo", "-o", "json").stdout)["replanning"]
    assert (data["mode"], data["planned_per_s"], data["measured_per_s"]) == ("on", 20.0, 43.5)
    assert (data["last"]["rate_per_s"], data["last"]["outcome"]) == (50.6, "applied")


def test_yaml_can_be_read_back(server: Server) -> None:
    from ruamel.yaml import YAML

    data = YAML(typ="safe").load(server("ls", "-o", "yaml").stdout)
    assert data[0]["name"] == "count"


def test_trace_draws_the_timeline(server: Server) -> None:
    server("invoke", "echo", "text=a", "--id", "job-4")
    assert "job-4" in server("trace", "job-4", "-o", "json").stdout
    assert "stage" in server("trace", "job-4").stdout


def test_rm_removes(server: Server) -> None:
    assert server("rm", "echo").exit_code == 0
    assert "echo" not in server("ls").stdout.split()


def test_rm_says_what_still_runs(server: Server) -> None:
    server("invoke", "wait", "--async", "--id", "job-5")
    assert server("rm", "wait").stderr.splitlines() == ["removed wait", "1 invocation still runs to its end"]


def test_nobody_there_gives_a_hint(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    monkeypatch.setenv("DATAFLOWER_SERVER", f"127.0.0.1:{unused_tcp_port}")
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == 1
    assert "is `dataflower serve` running" in result.stderr


def test_a_misspelt_variable_is_noticed_by_those_who_call_a_server(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAFLOWER_SERVR", "somewhere:1")
    note = "note: DATAFLOWER_SERVR is set, and sets nothing (did you mean 'DATAFLOWER_SERVER'?)\n"
    assert server("invoke", "echo", "text=hi").stderr.count(note) == 1
    assert note not in server("invoke", "echo", "text=hi", "--quiet").stderr


def test_stdin_as_input(server: Server) -> None:
    assert server("invoke", "echo", "text=@-", input_="from a pipe").stdout.split(maxsplit=1)[1] == "from a pipe\n"
