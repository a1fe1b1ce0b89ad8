"""Plan files: what is written is read back, and what no engine could carry out is refused with its place."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from ruamel.yaml import YAML

from dataflower.planner import (
    Application,
    Arrivals,
    Billing,
    Device,
    DocumentInvalid,
    Module,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    check_against,
    document_of,
    parse_plan,
    plan,
)
from dataflower.planner.baselines import HARPAGON, OURS
from dataflower.spec.workflow import Case, Stage, Workflow

APP = Application("app", (Module("a", "m"), Module("b", "m", 2.5)), (("a", "b"),))
PROFILES = Profiles(
    (Profile("m", "gpu", tuple(Point(b, 0.01 + 0.004 * b) for b in (1, 2, 4, 8, 16))),), {"gpu": Device("gpu", 2.0)}
)
POISSON = Options(billing=Billing.INTEGER, arrivals=Arrivals.POISSON)


def yaml_text(data: object) -> str:
    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(data, out)
    return out.getvalue()


def planned(options: Options = OURS) -> Plan:
    found = plan(APP, PROFILES, 37.0, 0.4, options)
    assert isinstance(found, Plan)
    return found


@pytest.mark.parametrize("options", [OURS, HARPAGON, replace(OURS, billing=Billing.INTEGER), POISSON])
@pytest.mark.parametrize("text", [json.dumps, yaml_text], ids=["json", "yaml"])
def test_a_plan_file_is_read_back_as_it_was_written(options: Options, text: object) -> None:
    document = document_of(planned(options), options)
    assert callable(text)
    assert parse_plan(text(document.as_data()), "plan") == document


def test_a_document_says_what_the_engine_needs() -> None:
    found = planned()
    document = document_of(found, OURS)
    assert (document.workflow, document.rate_per_s, document.slo_ms) == ("app", 37.0, 400.0)
    assert (document.arrivals, document.billing, document.percentile) == ("paced", "use", 100.0)
    for stage in found.stages:
        written = document.stages[stage.stage]
        assert written.budget_ms == pytest.approx(stage.budget_s * 1000)
        for group, a in zip(written.groups, stage.tuples, strict=True):
            assert (group.device, group.batch) == (a.configuration.hardware, a.configuration.batch)
            assert group.replicas >= group.machines
            # a batch that is cut at its time-out is done when the worst case and half of the slack are used up
            half = (stage.worst_s + stage.budget_s) / 2 * 1000
            assert group.timeout_ms + group.duration_ms == pytest.approx(half)
    assert sum(s.budget_ms for s in document.stages.values()) <= document.slo_ms * (1 + 1e-8)


def test_what_shared_machines_carry_needs_no_replica_of_its_own() -> None:
    options = Options(billing=Billing.INTEGER)
    found = plan(APP, PROFILES, 4.0, 1.0, options)
    assert isinstance(found, Plan)
    document = document_of(found, options)
    assert len(document.shared) == 1
    assert {(s.workflow, s.stage) for s in document.shared[0].shares} == {("app", "a"), ("app", "b")}
    assert [g.replicas for s in document.stages.values() for g in s.groups] == [0, 0]


def broken(path: tuple[str | int, ...], value: object) -> str:
    data = document_of(planned(), OURS).as_data()
    inner = data
    for part in path[:-1]:
        inner = inner[part]  # type: ignore[index]
    inner[path[-1]] = value  # type: ignore[index]
    return yaml_text(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("stages", "a", "budget_ms"), -1, "budget_ms: input should be greater than 0, not -1"),
        (("stages", "a", "groups", 0, "batch"), 0, "batch: input should be greater than or equal to 1, not 0"),
        (("stages", "a", "groups", 0, "batch"), "two", "batch: input should be a valid integer, not 'two'"),
        (("stages", "a", "groups", 0, "machines"), 0.001, "machines serve"),
        (("stages", "a", "groups", 0, "duration_ms"), 1e6, "more than the budget"),
        (("stages", "a", "groups", 0, "replcas"), 1, "unknown key 'replcas'"),
        (("stages", "a", "dummy_rate_per_s"), 1e6, "would serve dummies only"),
        (("kind",), "Workflow", "Workflow is not a Plan"),
        (("apiVersion",), "dataflower/v9", "apiVersion: input should be 'dataflower/v1'"),
        (("rate_per_s",), float("inf"), "rate_per_s: input should be a finite number"),
    ],
)
def test_what_could_not_be_carried_out_is_refused_with_its_place(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    text = broken(path, value)
    with pytest.raises(DocumentInvalid, match=r"^plan\.yaml:\d+:\d+: ") as caught:
        parse_plan(text, "plan.yaml")
    assert message in str(caught.value)
    (line,) = {p.line for p in caught.value.problems if message in p.message}
    if path != ("kind",):
        assert str(path[-1]) in text.splitlines()[line - 1]


def test_a_plan_for_another_workflow_is_refused() -> None:
    document = document_of(planned(), OURS)
    same = Workflow("app", {"a": Stage("a", "m:f"), "s": Stage("s", cases=(Case("x", None),)), "b": Stage("b", "m:f")})
    check_against(document, same, "plan.yaml")
    with pytest.raises(DocumentInvalid, match="the plan is for workflow 'app', not 'other'"):
        check_against(document, replace(same, name="other"), "plan.yaml")
    with pytest.raises(DocumentInvalid, match="no stage 'b'") as caught:
        check_against(document, replace(same, stages={"a": Stage("a", "m:f"), "c": Stage("c", "m:f")}), "plan.yaml")
    assert "the plan has nothing for stage 'c'" in str(caught.value)
