"""The paper's workflows, as the engine and as the baselines read them."""

from __future__ import annotations

import pytest

from bench.baseline.workloads import BENCHMARKS, Benchmark
from bench.engine import ROOT
from dataflower.config.sources import file_reader, source_finder
from dataflower.spec.load import load
from dataflower.spec.workflow import Fanout


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_the_engine_gets_the_same_graph_as_the_baselines(benchmark: Benchmark) -> None:
    workflow = load(benchmark.workflow(0.5), file="x", read=file_reader, find_source=source_finder([ROOT]))
    assert list(workflow.stages) == [step.name for step in benchmark.steps]
    for step in benchmark.steps:
        stage = workflow.stages[step.name]
        edges = [edge for port in stage.inputs for edge in port.edges]
        wanted = [text.rpartition(" ") for text in step.inputs] or [("", "", "inputs")]
        assert [(edge.fanout, edge.source.stage) for edge in edges] == [
            (Fanout(how or "all"), name) for how, _, name in wanted
        ]
        assert stage.params["seconds"] == step.seconds / 2
        assert stage.scaling.max_replicas == step.replicas


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_on_three_hosts_each_of_the_papers_workers_has_its_own(benchmark: Benchmark) -> None:
    text = benchmark.workflow(0.5, ("b", "c"))
    workflow = load(text, file="x", read=file_reader, find_source=source_finder([ROOT]))
    for step in benchmark.steps:
        assert workflow.stages[step.name].resources.host == ("", "b", "c")[step.worker]
        readers = [one for one in benchmark.steps if step.name in " ".join(one.inputs).split()]
        elsewhere = {one.worker for one in readers} if readers else {0}
        assert benchmark.crosses(step, 3) == (elsewhere != {step.worker})


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_on_two_hosts_steps_are_where_the_paper_has_them(benchmark: Benchmark) -> None:
    text = benchmark.workflow(0.5, ("b",))
    workflow = load(text, file="x", read=file_reader, find_source=source_finder([ROOT]))
    for step in benchmark.steps:
        resources = workflow.stages[step.name].resources
        assert resources.host == ("b" if step.worker == 1 else "")
        assert resources.bandwidth == step.bandwidth
        assert benchmark.crosses(step, 2) or step.worker != 1 or benchmark.name == "recognizer" or step.name == "split"


def test_a_container_sends_forty_megabits_for_a_tenth_of_a_core() -> None:
    compute = BENCHMARKS["svd"].step("compute")
    assert compute.bandwidth == 0.1 * 50e6 == 5e6


@pytest.mark.parametrize("name", BENCHMARKS)
def test_four_times_the_containers_fit_the_workers_of_the_paper(name: str) -> None:
    crowd = BENCHMARKS[name].times(4)
    for worker in range(3):
        assert sum(step.replicas * step.cores for step in crowd.steps if step.worker == worker) <= 16
    assert crowd.clients[-1] == 4 * BENCHMARKS[name].clients[-1]
