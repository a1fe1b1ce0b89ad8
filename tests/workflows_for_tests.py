"""Workflows of the functions in `functions_for_tests`, built without YAML. A workflow's source is its name here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflower.spec.function import Kind, Port, PortType
from dataflower.spec.workflow import (
    INPUTS,
    Edge,
    Fanout,
    Input,
    Output,
    PortRef,
    Retry,
    Scaling,
    Stage,
    Workflow,
)

CODE_PATH = (str(Path(__file__).parent),)
INT = PortType(Kind.INT)


def edge(source: str, fanout: Fanout = Fanout.ALL) -> Edge:
    stage, _, port = source.partition(".")
    return Edge(PortRef(stage, port), fanout)


def stage(
    name: str,
    function: str,
    inputs: Mapping[str, Edge | str],
    *,
    stream: bool = False,
    stream_inputs: tuple[str, ...] = (),
    **rest: Any,
) -> Stage:
    edges = {key: edge(value) if isinstance(value, str) else value for key, value in inputs.items()}
    return Stage(
        name=name,
        function=f"functions_for_tests:{function}",
        inputs=tuple(Input(key, (value,)) for key, value in edges.items()),
        input_ports=tuple(Port(key, stream=key in stream_inputs) for key in edges),
        outputs=(Port("out", stream=stream),),
        **rest,
    )


def workflow(
    name: str,
    stages: list[Stage],
    outputs: Mapping[str, Edge | str],
    inputs: tuple[Port, ...] = (Port("x"),),
    **rest: Any,
) -> Workflow:
    return Workflow(
        name=name,
        stages={s.name: s for s in stages},
        inputs=inputs,
        outputs=tuple(Output(key, edge(value) if isinstance(value, str) else value) for key, value in outputs.items()),
        **rest,
    )


def single(function: str, **rest: Any) -> Workflow:
    """One stage called `only`, from input `x` to output `y`."""
    return workflow(function, [stage("only", function, {"x": f"{INPUTS}.x"}, **rest)], {"y": "only.out"})


def chain(length: int, **rest: Any) -> Workflow:
    """Pass-through stages one after the other."""
    names = [f"s{i}" for i in range(length)]
    sources = [f"{INPUTS}.x", *(f"{name}.out" for name in names)]
    stages = [stage(name, "passthrough", {"x": source}) for name, source in zip(names, sources, strict=False)]
    return workflow("chain", stages, {"y": sources[-1]}, **rest)


def counting(**rest: Any) -> Workflow:
    """A stream of the numbers below `n`."""
    stages = [stage("count", "count_to", {"n": "inputs.n"}, stream=True, **rest)]
    return workflow("counting", stages, {"numbers": "count.out"}, (Port("n", INT),))


def map_reduce() -> Workflow:
    """Numbers below `n`, doubled one by one, and summed."""
    stages = [
        stage("count", "count_to", {"n": "inputs.n"}, stream=True),
        stage("double", "double", {"x": edge("count.out", Fanout.EACH)}, scaling=Scaling(max_replicas=2)),
        stage("total", "total", {"items": edge("double.out", Fanout.GATHER)}),
    ]
    return workflow("map_reduce", stages, {"total": "total.out"}, (Port("n", INT),))


def summing() -> Workflow:
    """A stream in, the running total out."""
    stages = [stage("sum", "running_total", {"items": "inputs.items"}, stream=True, stream_inputs=("items",))]
    return workflow("summing", stages, {"totals": "sum.out"}, (Port("items", stream=True),))


def tensors() -> Workflow:
    """An array of `n` numbers, doubled, and the array itself."""
    stages = [stage("fill", "fill", {"n": "inputs.n"}), stage("scale", "scale", {"x": "fill.out"})]
    return workflow("tensors", stages, {"doubled": "scale.out", "plain": "fill.out"}, (Port("n", INT),))


def retried(function: str, attempts: int = 3) -> Workflow:
    """`single` with fast retries."""
    return single(function, retry=Retry(max_attempts=attempts, interval_s=0.01, jitter="none"))


def load(source: str, file: str = "") -> Workflow:
    """The loader of hosts in tests."""
    made = {"chain": lambda: chain(2), "counting": counting, "map_reduce": map_reduce, "summing": summing}
    return made[source]() if source in made else single(source)
