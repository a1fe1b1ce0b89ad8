"""Tables: what is read, what is refused, and where the message points."""

import pytest

from dataflower.errors import NotFound
from dataflower.planner import Device, Dips, Point, Profile, ProfileInvalid, Profiles, parse_prices, parse_profiles

GPU = {"gpu": Device("gpu", 2.0), "cpu": Device("cpu", 0.5, memory_bytes=1000)}
HEADER = "source,model,hardware,batch,duration_s,std_s\n"


def complaints(rows: str, header: str = HEADER) -> list[str]:
    with pytest.raises(ProfileInvalid) as caught:
        parse_profiles(header + rows, "times.csv", GPU)
    return [str(p) for p in caught.value.problems]


def test_a_good_table() -> None:
    (profile,) = parse_profiles(HEADER + "lab,net,gpu,2,0.03,0.001\nlab,net,gpu,1,0.02,\n", "t.csv", GPU)
    assert profile == Profile("net", "gpu", (Point(1, 0.02), Point(2, 0.03, 0.001)))


def test_stage_may_stand_for_model_and_a_remark_may_follow_a_column_name() -> None:
    (profile,) = parse_profiles("stage,hardware(/vGPU split),batch,duration_s\na,gpu,1,0.1\n", "t.csv", GPU)
    assert (profile.model, profile.hardware) == ("a", "gpu")


@pytest.mark.parametrize(
    ("rows", "where", "what"),
    [
        ("s,net,gpu,1,0,\n", "times.csv:2:5", "must be greater than 0, not 0"),
        ("s,net,gpu,1,-1,\n", "times.csv:2:5", "must be greater than 0"),
        ("s,net,gpu,1,nan,\n", "times.csv:2:5", "must be greater than 0"),
        ("s,net,gpu,1,soon,\n", "times.csv:2:5", "not a number: 'soon'"),
        ("s,net,gpu,1,,\n", "times.csv:2:5", "duration_s is missing"),
        ("s,net,gpu,1.5,1,\n", "times.csv:2:4", "whole number"),
        ("s,net,tpu,1,1,\n", "times.csv:2:3", "unknown device 'tpu' (known: cpu, gpu"),
        ("s,net,gpu,4,1,\n", "times.csv:2:5", "starts at batch 4"),
        ("s,net,gpu,1,1,\ns,net,gpu,8,2,\n", "times.csv:3:5", "gap between batch 1 and 8"),
        ("s,net,gpu,1,1,\ns,net,gpu,2,0.9,\n", "times.csv:3:5", "batch 2 takes 0.9 s, less than batch 1"),
        ("s,net,gpu,1,1,\ns,net,gpu,1,1,\n", "times.csv:3:5", "batch 1 is listed twice"),
    ],
)
def test_bad_rows_are_named_by_file_line_and_column(rows: str, where: str, what: str) -> None:
    (complaint,) = complaints(rows)
    assert complaint.startswith(where)
    assert what in complaint


def test_all_problems_are_told_at_once() -> None:
    assert len(complaints("s,a,gpu,1,0,\ns,b,tpu,1,1,\ns,c,gpu,x,1,\n")) == 3


def test_a_missing_column_and_an_empty_table() -> None:
    assert "no column 'batch'" in complaints("", "model,hardware,duration_s\n")[0]
    assert "no rows" in complaints("")[0]


def test_dips_are_mended_on_demand_and_noise_always() -> None:
    rows = "s,n,gpu,1,1,\ns,n,gpu,2,3,\ns,n,gpu,4,2,\n"
    (mended,) = parse_profiles(HEADER + rows, "t.csv", GPU, dips=Dips.MEND)
    assert [p.duration_s for p in mended.points] == [1, 2, 2]
    (lifted,) = parse_profiles(HEADER + "s,n,gpu,1,1,\ns,n,gpu,2,0.99,\n", "t.csv", GPU)
    assert [p.duration_s for p in lifted.points] == [1, 1]


def test_rows_of_other_devices_can_be_passed_over() -> None:
    found = parse_profiles(HEADER + "s,n,gpu,1,1,\ns,n,V100/2,1,1,\n", "t.csv", GPU, only=["gpu"])
    assert [p.hardware for p in found] == ["gpu"]


def test_prices() -> None:
    devices = parse_prices("hardware,price,memory_bytes\nV100,3.06,16000\nT4,0.53,\n", "p.csv")
    assert devices == {"V100": Device("V100", 3.06, 16000), "T4": Device("T4", 0.53)}


@pytest.mark.parametrize(
    ("row", "what"),
    [("V100,-1\n", "p.csv:2:2: price of V100 must be greater than 0, not -1"), ("V100,1\nV100,2\n", "p.csv:3:1")],
)
def test_bad_prices(row: str, what: str) -> None:
    with pytest.raises(ProfileInvalid, match=what):
        parse_prices("hardware,price\n" + row, "p.csv")


def test_a_measured_batch_is_certain_and_one_between_less_so() -> None:
    profile = Profile("n", "gpu", tuple(Point(b, 0.01 + 0.002 * b) for b in (1, 2, 4, 8, 16)))
    assert profile.estimate(8).confidence == 1.0
    between = profile.estimate(12)
    assert between.duration_s == pytest.approx(0.034)
    assert between.confidence == pytest.approx(1.0)  # a straight line is interpolated without error
    bent = Profile("n", "gpu", tuple(Point(b, 0.01 + 0.002 * b**0.5) for b in (1, 2, 4, 8, 16)))
    assert not bent.estimate(12).measured
    assert 0 < bent.estimate(12).error < 0.1
    assert bent.estimate(12).safe_s > bent.estimate(12).duration_s


def test_nothing_is_estimated_beyond_the_measured_batches() -> None:
    with pytest.raises(NotFound, match="measured for batches 1 to 2, not 3"):
        Profile("n", "gpu", (Point(1, 0.1), Point(2, 0.1))).estimate(3)


def test_configurations_that_do_not_fit_into_memory_are_left_out() -> None:
    points = (Point(1, 0.1, None, 800), Point(2, 0.15, None, 1600))
    profiles = Profiles((Profile("n", "cpu", points), Profile("n", "gpu", points)), GPU)
    assert {(c.hardware, c.batch) for c in profiles.configurations("n")} == {("cpu", 1), ("gpu", 1), ("gpu", 2)}


def test_ranking_is_by_throughput_for_the_price() -> None:
    profiles = Profiles(
        (Profile("n", "cpu", (Point(1, 0.1),)), Profile("n", "gpu", (Point(1, 0.1), Point(2, 0.1)))), GPU
    )
    assert [(c.hardware, c.batch) for c in profiles.configurations("n")] == [("cpu", 1), ("gpu", 2), ("gpu", 1)]
