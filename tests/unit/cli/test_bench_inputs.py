"""What `dataflower bench` makes of its options."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dataflower.cli import bench_inputs as options
from dataflower.cli.exits import WrongUsage
from dataflower.errors import InvalidArgument
from dataflower.loadgen.arrivals import Shape
from dataflower.spec.function import Kind, Port, PortType, Tensor, Text
from dataflower.spec.workflow import Slo

PORTS = (Port("text", Text()), Port("n", PortType(Kind.INT)), Port("x", Tensor("FP32")), Port("s", Text(), stream=True))


def test_limits_by_any_of_their_names() -> None:
    found = options.slo_with(None, ["e2e=0.4s,ttft:50", "inter_token_latency=20ms tpot=25"])
    assert found == Slo(e2e_ms=400, ttft_ms=50, itl_ms=20, tpot_ms=25)


def test_limits_go_over_those_of_the_workflow() -> None:
    assert options.slo_with(Slo(e2e_ms=100, ttft_ms=5, percentile=95), ["e2el=200"]) == Slo(
        e2e_ms=200, ttft_ms=5, percentile=95
    )
    assert options.slo_with(None, []) is None


@pytest.mark.parametrize("bad", ["e2e", "latencyy=3", "e2e=soon", "e2e=0"])
def test_bad_limits(bad: str) -> None:
    with pytest.raises(WrongUsage, match="--slo"):
        options.slo_with(None, [bad])


def test_shares() -> None:
    assert (options.share("99%"), options.share("0.95"), options.share(None)) == (0.99, 0.95, None)
    for bad in ("2", "0", "high"):
        with pytest.raises(WrongUsage, match="--attainment"):
            options.share(bad)


def test_sets_of_inputs(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a long text")
    file = tmp_path / "sets.jsonl"
    file.write_text(f'{{"text": "5", "n": 2}}\n\n{{"text": "@{tmp_path}/long.txt", "s": ["a", "b"], "x": [1, 2]}}\n')
    first, second = options.input_sets(file, {"n": 1}, PORTS)
    assert first == {"text": "5", "n": 2}
    assert (second["text"], second["n"], second["s"]) == ("a long text", 1, ["a", "b"])
    assert second["x"].dtype == "float32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "sets.jsonl:1:1: no sets of inputs"),
        ("{oops\n", "sets.jsonl:1:1: not JSON"),
        ('{"n": 1}\n[1]\n', "sets.jsonl:2:1: not a JSON object"),
        ('{"m": 1}\n', "sets.jsonl:1:1: no input 'm'"),
        ('{"n": "many"}\n', "sets.jsonl:1:1: input 'n' takes int"),
        ('{"s": "a"}\n', "is a stream: give a list"),
    ],
)
def test_bad_sets_are_named_by_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "sets.jsonl"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=said):
        options.input_sets(file, {}, PORTS)


def test_windows() -> None:
    assert options.window("60s:5m") == (60.0, 300.0)
    assert options.window(":10") == (0.0, 10.0)
    assert options.window("10:") == (10.0, math.inf)
    assert options.window(None) == (0.0, math.inf)
    with pytest.raises(WrongUsage, match="FROM:TO"):
        options.window("10")


def test_budgets_are_milliseconds_unless_they_say() -> None:
    assert options.budgets(["a=40", "b=1.5s"]) == {"a": 40.0, "b": 1500.0}
    with pytest.raises(WrongUsage, match="detect=40ms"):
        options.budgets(["a"])


def test_devices(tmp_path: Path) -> None:
    prices = tmp_path / "prices.csv"
    prices.write_text("hardware,price\nl4,0.8\nh100x2,9\n")
    assert options.device(prices, "l4x3") == ("l4", 3.0, 0.8)
    assert options.device(prices, "h100x2") == ("h100x2", 1.0, 9.0)
    assert options.device(None, None) is None
    with pytest.raises(WrongUsage, match="lists l4, h100x2: name the one"):
        options.device(prices, None)
    with pytest.raises(WrongUsage, match=r"no 'l40'.*did you mean 'l4'"):
        options.device(prices, "l40")
    with pytest.raises(WrongUsage, match="goes with --prices"):
        options.device(None, "l4")
    prices.write_text("hardware,price\nl4,0.8\n")
    assert options.device(prices, None) == ("l4", 1.0, 0.8)


@pytest.mark.parametrize(
    ("shape", "given", "said"),
    [
        (Shape.RAMP, {}, "wants --rate-to"),
        (Shape.POISSON, {"rate_to": 3.0}, "--rate-to goes with"),
        (Shape.GAMMA, {}, "wants --cv"),
        (Shape.CONSTANT, {"cv": 2.0}, "--cv goes with"),
    ],
)
def test_options_that_do_not_go_together(shape: Shape, given: dict[str, float], said: str) -> None:
    with pytest.raises(WrongUsage, match=said):
        options.arrivals(shape, 1.0, **{"cv": None, "rate_to": None, "burst_s": 1.0, "every_s": 10.0, **given})  # type: ignore[arg-type]


def test_arrivals_have_the_spread_of_their_name() -> None:
    def spread(shape: Shape, cv: float | None = None, rate_to: float | None = None) -> float:
        return options.arrivals(shape, 1.0, cv=cv, rate_to=rate_to, burst_s=1.0, every_s=10.0).cv

    assert spread(Shape.CONSTANT) == 0.0
    assert spread(Shape.POISSON) == 1.0
    assert spread(Shape.GAMMA, cv=3.0) == 3.0
    assert spread(Shape.RAMP, rate_to=2.0) == 1.0
    assert spread(Shape.BURST, rate_to=2.0, cv=0.0) == 0.0
