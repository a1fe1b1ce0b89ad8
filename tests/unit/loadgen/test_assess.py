"""What a measurement says: counts, verdicts, stages."""

from __future__ import annotations

import pytest
from bench_for_tests import measured, sample, terms

from dataflower.loadgen.assess import assess, limits_of
from dataflower.loadgen.messages import REFUSED, UNFINISHED, Sample
from dataflower.loadgen.report import Outcome
from dataflower.spec.workflow import Slo

SLO = Slo(e2e_ms=150)


def test_warm_up_is_in_no_figure() -> None:
    slow_start = [sample(i, 5.0 if i < 10 else 0.1) for i in range(110)]
    report = assess(measured(slow_start), terms(SLO))
    assert (report.counts.warmup, report.counts.measured, report.counts.good) == (10, 100, 100)
    assert report.metrics["e2e_ms"].max == pytest.approx(100)
    assert report.rates.offered_per_s == pytest.approx(10)
    assert report.verdict.outcome is Outcome.MET
    assert "the first 1 s are warm-up" in report.notes[0]


def test_latency_counts_from_the_scheduled_start() -> None:
    late = [sample(i, 0.1 + 0.1 * (i == 50), lag_s=0.1 * (i == 50)) for i in range(110)]
    assert assess(measured(late), terms()).metrics["e2e_ms"].max == pytest.approx(200)


def test_attainment_below_the_target_is_a_miss() -> None:
    report = assess(measured([sample(i, 0.2 if i >= 108 else 0.1) for i in range(110)]), terms(SLO))
    assert report.verdict.attainment == pytest.approx(0.98)
    assert report.verdict.outcome is Outcome.MISSED


def test_percentile_95_allows_for_five_late_ones() -> None:
    slo = Slo(e2e_ms=150, percentile=95)
    report = assess(measured([sample(i, 0.2 if i >= 105 else 0.1) for i in range(110)]), terms(slo))
    assert report.verdict.outcome is Outcome.MET
    assert limits_of(slo, 0.99).target == 0.99  # type: ignore[union-attr]


def test_failed_and_refused_ones_did_not_keep_it_and_are_in_no_percentile() -> None:
    codes = {60: "INTERNAL", 61: REFUSED, 62: REFUSED, 63: UNFINISHED}
    samples = [sample(i, 9.0 if i in codes else 0.1, code=codes.get(i, "")) for i in range(110)]
    report = assess(measured(samples), terms(SLO))
    counts = report.counts
    assert (counts.ok, counts.refused, counts.failed, counts.unfinished, counts.good) == (96, 2, 1, 1, 96)
    assert report.verdict.attainment == pytest.approx(0.96)
    assert report.verdict.attainment_accepted == pytest.approx(96 / 98)
    assert report.metrics["e2e_ms"].max == pytest.approx(100)
    assert [(f.code, f.count) for f in report.faults] == [(REFUSED, 2), ("INTERNAL", 1), (UNFINISHED, 1)]
    assert (report.faults[1].kind, report.faults[1].stage, report.faults[1].message) == ("ValueError", "a", "no 60")


def test_accepted_only_judges_by_those_that_were_not_refused() -> None:
    import msgspec

    asked = terms(SLO)
    settings = msgspec.structs.replace(asked.settings, accepted_only=True)
    samples = [sample(i, code=REFUSED if i % 2 else "") for i in range(110)]
    import dataclasses

    report = assess(measured(samples), dataclasses.replace(asked, settings=settings))
    assert report.verdict.outcome is Outcome.MET
    assert report.verdict.attainment == pytest.approx(0.5)


def test_a_generator_that_fell_behind_proves_nothing() -> None:
    report = assess(measured([sample(i, 0.1, lag_s=0.02) for i in range(110)]), terms(SLO))
    assert report.verdict.outcome is Outcome.UNPROVEN
    assert "fell behind: p99 of the send lag is 20.0 ms, allowed are 7.5 ms" in report.verdict.reasons[0]


def test_a_miss_stays_a_miss_even_so() -> None:
    report = assess(measured([sample(i, 0.4, lag_s=0.02) for i in range(110)]), terms(SLO))
    assert report.verdict.outcome is Outcome.MISSED


def test_requests_that_were_not_sent_prove_nothing() -> None:
    report = assess(measured([sample(i) for i in range(100)]), terms(SLO))
    assert report.verdict.outcome is Outcome.UNPROVEN
    assert report.counts.unsent == 10


def test_a_lost_server_is_said_and_what_was_measured_stays() -> None:
    found = measured([sample(i) for i in range(60)])
    found.lost = 6.0
    report = assess(found, terms(SLO))
    assert report.verdict.cut_short
    assert report.verdict.reasons == ("the server went away after 6.0 s",)
    assert report.rates.ok_per_s == pytest.approx(10)


def test_an_interrupted_run_is_said() -> None:
    found = measured([sample(i) for i in range(60)])
    found.interrupted = True
    assert "stopped before its end" in assess(found, terms(SLO)).verdict.reasons[0]


def test_nothing_measured() -> None:
    report = assess(measured([]), terms(SLO))
    assert report.verdict.outcome is Outcome.UNPROVEN
    assert report.whole is None
    assert not report.metrics


def test_without_an_slo_there_is_no_verdict() -> None:
    report = assess(measured([sample(i) for i in range(110)]), terms())
    assert (report.verdict.outcome, report.verdict.attainment) == (Outcome.NONE, None)


def test_streams_have_ttft_itl_and_tpot() -> None:
    streams = [[0.05, 0.06, 0.10]]
    samples = [
        Sample(i, i / 10, i / 10, i / 10 + 0.1, streams=[[i / 10 + t for t in times] for times in streams])
        for i in range(110)
    ]
    report = assess(measured(samples, traced=False), terms(Slo(ttft_ms=60, tpot_ms=20)))
    assert report.metrics["ttft_ms"].p50 == pytest.approx(50)
    assert report.metrics["itl_ms"].n == 200
    assert report.metrics["itl_ms"].max == pytest.approx(40)
    assert report.metrics["tpot_ms"].avg == pytest.approx(25)
    assert report.verdict.attainment == 0.0  # tpot is missed by all


def test_parts_of_the_whole_and_of_a_stage() -> None:
    report = assess(measured([sample(i) for i in range(110)]), terms(SLO, budgets_ms={"a": 80.0}))
    assert report.whole is not None
    waited = 99.8
    assert report.whole.parts_ms["compute"] == pytest.approx(waited * 0.5)
    assert report.whole.parts_ms["queue"] == pytest.approx(waited * 0.1)
    assert report.whole.parts_ms["door"] == pytest.approx(waited * 0.1)
    assert report.whole.overhead_ms == pytest.approx(waited * 0.4)
    assert sum(report.whole.parts_ms.values()) == pytest.approx(100)
    (stage,) = report.stages
    assert stage.latency_ms.p50 == pytest.approx(waited * 0.75)
    assert (stage.attainment, stage.replicas, stage.replicas_max) == (1.0, 2.0, 2)
    assert stage.goodput_per_s == pytest.approx(10)
    assert stage.overhead_ms == pytest.approx(waited * 0.15)


def test_a_missed_budget_shows_at_its_stage() -> None:
    report = assess(measured([sample(i) for i in range(110)]), terms(SLO, budgets_ms={"a": 10.0}))
    assert report.stages[0].attainment == 0.0


def test_cost_of_a_thousand_good_ones() -> None:
    report = assess(measured([sample(i) for i in range(110)]), terms(SLO, device=("l4", 2.0, 3.6)))
    assert report.cost is not None
    assert report.cost.per_1000_good == pytest.approx(2 * 3.6 / 3600 * 10 / 100 * 1000)


def test_the_slowest_come_with_their_record_points() -> None:
    samples = [sample(i, 0.1 + i / 1000) for i in range(110)]
    report = assess(measured(samples), terms(SLO))
    assert [slow.invocation for slow in report.slowest] == [f"run-{i}" for i in (109, 108, 107, 106, 105)]
    assert report.slowest[0].tasks[0]["stage"] == "a"
    assert report.slowest[0].server_ms == pytest.approx((0.209 - 0.0002) * 900)


def test_the_timeline_covers_the_run() -> None:
    report = assess(measured([sample(i) for i in range(110)]), terms(SLO))
    assert sum(second.offered for second in report.timeline) == 110
    assert report.timeline[-1].at_s + report.timeline[-1].length_s >= 11
    assert report.timeline[3].replicas == {"a": 2.0}
    assert report.timeline[3].queued == 3
