"""From workflow files, measured profiles, tables and prices to what a plan is made of; and what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dataflower.config.sources import load_file
from dataflower.errors import InvalidArgument, NotFound
from dataflower.planner import DocumentInvalid, Plan, ProfileInvalid, parse_measured, plan
from dataflower.planner.application import Fanned, from_workflow
from dataflower.planner.inventory import Source, Wishes, take_stock
from dataflower.planner.pack import pack
from dataflower.planner.profile import Configuration
from dataflower.planner.schedule import Allotment
from dataflower.spec.workflow import INPUTS, Batch, Workflow

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.yaml"))

PROFILE = """\
apiVersion: dataflower/v1
kind: Profile
workflow: wordcount
device: cpu
invocations: 2
items: {split: 22.0}
stages:
  split:
    tasks: 1.0
    most: 1
    points:
      - {batch: 1, duration_ms: 28.0, high_ms: 38.0, std_ms: 2.0}
  count:
    tasks: 22.0
    most: 30
    points:
      - {batch: 1, duration_ms: 21.0, high_ms: 31.0}
      - {batch: 2, duration_ms: 36.0, high_ms: 50.0, memory_bytes: 1000000}
      - {batch: 4, duration_ms: 60.0}
  rank:
    cores: 2
    points:
      - {batch: 1, duration_ms: 360.0, memory_bytes: 9000000}
"""
TABLE = """\
model,hardware,batch,duration_s
nlp,gpu,1,0.002
nlp,gpu,2,0.003
nlp,gpu,4,0.004
other,gpu,1,0.002
other,gpu,2,0.001
"""
PRICES = "hardware,price,memory_bytes\ncpu,0.1,8000000\ngpu,0.9,\n"


def workflow(name: str) -> Workflow:
    return load_file(ROOT / "workflows" / f"{name}.yaml", code_path=[ROOT])


PLAIN = workflow("wordcount")
WORDCOUNT = replace(PLAIN, stages={**PLAIN.stages, "count": replace(PLAIN.stages["count"], batch=Batch(max_size=4))})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_shipped_workflow_is_an_application(path: Path) -> None:
    found = load_file(path, code_path=[ROOT])
    stages = [name for name, stage in found.stages.items() if not stage.is_switch]
    measured = Fanned({name: (2.0 + i, 5 + i) for i, name in enumerate(stages)})
    app = from_workflow(found, measured=measured)
    assert [m.name for m in app.modules] == stages
    assert [(m.factor, m.most) for m in app.modules] == [(2.0 + i, 5 + i) for i in range(len(stages))]
    assert set(app.order) == set(stages)
    switches = {name for name, stage in found.stages.items() if stage.is_switch}
    assert not switches & {name for edge in app.edges for name in edge}


def test_fan_outs_multiply_and_cases_share() -> None:
    video = from_workflow(workflow("video"), items={"decode": 20, "detect": 1.5})
    factor = {m.name: m.factor for m in video.modules}
    assert factor == pytest.approx(
        {"decode": 1, "detect": 20, "faces": 30, "join": 20, "annotate": 20, "write": 1, "summarise": 1, "tell": 1}
    )
    triage = workflow("triage")
    shares = {"route.complaint": 0.5, "route.question": 0.25}
    factor = {m.name: m.factor for m in from_workflow(triage, shares=shares).modules}
    assert (factor["apologise"], factor["explain"], factor["thank"], factor["letter"]) == (0.5, 0.25, 1.0, 1.0)
    # route is passed through: what it waits for, those behind it wait for
    assert ("sort", "apologise") in from_workflow(triage).edges


def test_what_the_caller_says_goes_before_what_was_measured() -> None:
    measured = Fanned({"split": (1.0, 1), "count": (22.0, 30), "rank": (1.0, 1)}, {"split": 22.0})
    app = from_workflow(WORDCOUNT, measured=measured)
    assert (app.module("count").factor, app.module("count").burst) == (22.0, 30)
    app = from_workflow(WORDCOUNT, measured=measured, items={"split": 44.0})
    assert (app.module("count").factor, app.module("count").burst) == (44.0, 60)
    never = Fanned({"sort": (1.0, 1), "apologise": (0.0, 0), "explain": (1.0, 1)})
    triage = from_workflow(workflow("triage"), measured=never)
    assert triage.module("apologise").factor == 1.0  # never seen is no promise that it never comes
    triage = from_workflow(workflow("triage"), measured=never, shares={"route.complaint": 0.2})
    assert triage.module("apologise").factor == 0.2


def test_names_that_the_workflow_does_not_have() -> None:
    with pytest.raises(InvalidArgument, match=r"no fan-out 'splt' .did you mean 'split'"):
        from_workflow(WORDCOUNT, items={"splt": 2})
    with pytest.raises(InvalidArgument, match=r"no case 'route.x' .*the workflow has no switch"):
        from_workflow(WORDCOUNT, items={"split": 2}, shares={"route.x": 0.2})
    with pytest.raises(InvalidArgument, match="runs for each item of 'split': say how many"):
        from_workflow(WORDCOUNT)
    assert INPUTS == "inputs"


def stock(profile: str = PROFILE, *tables: str, prices: str | None = PRICES, wishes: Wishes | None = None) -> object:
    sources = [Source(profile, "p.yaml"), *(Source(t, f"t{i}.csv") for i, t in enumerate(tables))]
    return take_stock(WORDCOUNT, sources, None if prices is None else Source(prices, "prices.csv"), wishes)


def test_profiles_and_tables_are_put_together_by_stage() -> None:
    wishes = Wishes(models={"count": "nlp"})
    found = take_stock(WORDCOUNT, [Source(PROFILE, "p.yaml"), Source(TABLE, "t.csv")], Source(PRICES, "c.csv"), wishes)
    on = {(c.hardware, c.batch): c for c in found.profiles.configurations("count")}
    assert set(on) == {("cpu", 1), ("cpu", 2), ("cpu", 4), ("gpu", 1), ("gpu", 2), ("gpu", 4)}
    assert on["gpu", 4].duration_s == 0.004
    assert on["cpu", 1].duration_s == 0.031  # the 90th percentile, on the safe side
    assert on["cpu", 4].duration_s == 0.060
    assert on["cpu", 2].price == 0.1


def test_batches_that_the_stage_does_not_take_are_left_out() -> None:
    found = take_stock(PLAIN, [Source(PROFILE, "p.yaml")], Source(PRICES, "c.csv"))
    assert [c.batch for c in found.profiles.configurations("count")] == [1]


def test_two_cores_cost_twice_and_memory_limits() -> None:
    roomy = PRICES.replace("8000000", "16000000")
    found = take_stock(WORDCOUNT, [Source(PROFILE, "p.yaml")], Source(roomy, "c.csv"), Wishes(high=False))
    (rank,) = found.profiles.configurations("rank")
    assert (rank.hardware, rank.price, rank.memory_bytes, rank.limit_bytes) == ("cpu x2", 0.2, 9000000, 16000000)
    assert isinstance(plan(found.application, found.profiles, 1.0, 3.0), Plan)
    tight = take_stock(WORDCOUNT, [Source(PROFILE, "p.yaml")], Source(PRICES, "c.csv"))
    with pytest.raises(NotFound, match="'rank' fits into the memory of no device"):
        plan(tight.application, tight.profiles, 1.0, 3.0)


def test_without_prices_an_hour_counts_as_one_and_that_is_said() -> None:
    found = take_stock(WORDCOUNT, [Source(PROFILE, "p.yaml")])
    assert {c.price for c in found.profiles.configurations("count")} == {1.0}
    assert found.notes == ("no price file: an hour of cpu counts as 1",)


def test_machines_are_shared_only_as_far_as_their_memory_goes() -> None:
    def half(memory: int) -> Allotment:
        return Allotment(Configuration(4, 0.05, "gpu", 2.0, memory, 1000), 0.4, 32.0, 0.15)

    together, _ = pack({("w", "a", 0): half(500), ("v", "b", 0): half(500)}, lambda worst: True)
    assert [[s.workflow for s in m.shares] for m in together] == [["v", "w"]]
    apart, _ = pack({("w", "a", 0): half(500), ("v", "b", 0): half(501)}, lambda worst: True)
    assert len(apart) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("duration_ms: 21.0", "duration_ms: 0", r"p\.yaml:17:33: duration_ms: input should be greater than 0, not 0"),
        ("duration_ms: 36.0", "duration_ms: 11.0", r"p\.yaml:18:1: count on cpu: batch 2 takes 0.011 s, less"),
        ("{batch: 4, duration", "{batch: 9, duration", r"p\.yaml:19:1: count on cpu: gap between batch 2 and 9"),
        ("{batch: 2, duration", "{batch: 1, duration", r"p\.yaml:18:1: count on cpu: batch 1 is listed twice"),
        ("      - {batch: 1, duration_ms: 21.0, high_ms: 31.0}\n", "", r"p\.yaml:17:1: count on cpu starts at batch 2"),
        ("duration_ms: 60.0", "duration_s: 60.0", r"p\.yaml:19:\d+: unknown key 'duration_s'"),
        ("tasks: 22.0", "tasks: -1", r"p\.yaml:14:12: tasks: input should be greater than or equal to 0"),
        ("device: cpu", "device: tpu", r"p\.yaml:4:9: unknown device 'tpu' .*add it to prices\.csv"),
        ("kind: Profile", "kind: Plan", r"Plan is not a Profile"),
        ("stages:\n", "stages: {}\nx:\n", r"p\.yaml:\d+:\d+: "),
        ("workflow: wordcount", "workflow: [", r"p\.yaml:\d+:\d+: not valid YAML"),
    ],
)
def test_a_bad_profile_is_refused_with_its_place(old: str, new: str, message: str) -> None:
    assert old in PROFILE
    with pytest.raises(DocumentInvalid, match=message):
        stock(PROFILE.replace(old, new, 1))


def test_a_bad_table_or_price_is_refused_with_its_place() -> None:
    wishes = Wishes(models={"count": "other"})
    with pytest.raises(ProfileInvalid, match=r"t0\.csv:6:4: other on gpu: batch 2 takes 0.001 s, less"):
        stock(PROFILE, TABLE, wishes=wishes)
    assert stock(PROFILE, TABLE, wishes=Wishes(models={"count": "other"}, mend=True))
    assert stock(PROFILE, TABLE)  # rows that nobody asks for are no matter
    with pytest.raises(ProfileInvalid, match=r"prices\.csv:2:2: price of cpu must be greater than 0, not -0.1"):
        stock(prices=PRICES.replace("cpu,0.1", "cpu,-0.1"))
    with pytest.raises(DocumentInvalid, match=r"t0\.csv:1:1: no model 'npl', wanted for stage 'count' .*'nlp'"):
        stock(PROFILE, TABLE, wishes=Wishes(models={"count": "npl"}))
    with pytest.raises(InvalidArgument, match="no stage 'cuont'"):
        stock(wishes=Wishes(models={"cuont": "nlp"}))
    with pytest.raises(InvalidArgument, match="no profile on device 'gup'"):
        stock(PROFILE, TABLE, wishes=Wishes(models={"count": "nlp"}, only=frozenset({"gup"})))
    with pytest.raises(InvalidArgument, match="'count' has two profiles on gpu"):
        stock(PROFILE, TABLE, TABLE, wishes=Wishes(models={"count": "nlp"}))


def test_a_stage_without_durations_is_named() -> None:
    never = PROFILE[: PROFILE.index("    cores: 2")] + "    tasks: 0\n    points: []\n"
    with pytest.raises(NotFound, match="'rank' never ran when it was profiled"):
        stock(never)
    with pytest.raises(NotFound, match="no profile of stage 'rank': measure it"):
        stock(PROFILE[: PROFILE.index("  rank:")])


def test_a_profile_is_read_back_as_it_is_written() -> None:
    document = parse_measured(PROFILE, "p.yaml")
    assert document.fanned().tasks["count"] == (22.0, 30)
    assert type(document).model_validate(document.as_data()) == document
