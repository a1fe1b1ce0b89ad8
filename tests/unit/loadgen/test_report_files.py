"""The report as JSON, CSV and HTML, and two of them compared."""

from __future__ import annotations

import csv
import dataclasses
import io
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from bench_for_tests import measured, sample, terms

from dataflower.errors import InvalidArgument, NotFound
from dataflower.loadgen.assess import assess
from dataflower.loadgen.compare import Change, compare
from dataflower.loadgen.page import page
from dataflower.loadgen.report import Outcome, Point, Report, SweepResult, load, save
from dataflower.loadgen.table import requests_csv
from dataflower.spec.workflow import Slo

VOID = {"meta", "br"}


def report(factor: float = 1.0, name: str = "w") -> Report:
    samples = [
        sample(i, (0.1 + (i * 7919 % 100) / 1000) * factor, code="INTERNAL" if i == 77 else "") for i in range(110)
    ]
    asked = terms(Slo(e2e_ms=190), budgets_ms={"a": 150.0}, device=("l4", 1.0, 2.0))
    settings = msgspec.structs.replace(asked.settings, workflow=name)
    return assess(measured(samples), dataclasses.replace(asked, settings=settings))


class Tags(HTMLParser):
    """Checks that tags close in order, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return tags


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    first = report()
    save(first, tmp_path / "new" / "a.json")
    assert load(tmp_path / "new" / "a.json") == first


def test_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"bench": "hop"}')
    with pytest.raises(InvalidArgument, match="is no report of `dataflower bench`"):
        load(tmp_path / "a.json")
    with pytest.raises(NotFound):
        load(tmp_path / "b.json")


def test_csv_has_a_line_for_each_request() -> None:
    rows = list(csv.DictReader(io.StringIO(requests_csv(report()))))
    assert len(rows) == 100
    assert rows[67]["code"] == "INTERNAL"
    assert rows[67]["good"] == "0"
    assert rows[0]["ttft_ms"] == ""


def test_the_page_is_whole_and_fetches_nothing() -> None:
    text = page(report())
    tags = parsed(text)
    assert tags.links == []
    assert "script" not in tags.seen
    for forbidden in ("http:", "https:", "@import", "url("):
        assert forbidden not in text
    assert tags.seen["svg"] == 3 + 5  # CDF, timeline, budgets; five waterfalls
    assert "prefers-color-scheme: dark" in text


def test_the_page_escapes_what_others_wrote() -> None:
    assert "<script>" not in page(report(name="<script>alert(1)</script>"))


def test_the_page_of_an_empty_run() -> None:
    tags = parsed(page(assess(measured([]), terms(Slo(e2e_ms=190)))))
    assert tags.seen["svg"] == 1


def test_the_page_of_a_sweep() -> None:
    point = Point(10.0, 0, Outcome.MET, 1.0, 9.0, 100.0, 150.0, 0, 0.4)
    missed = msgspec.structs.replace(point, rate=20.0, outcome=Outcome.MISSED, attainment=0.5)
    swept = msgspec.structs.replace(report(), sweep=SweepResult(10.0, 20.0, "the rule", (point, missed)))
    text = page(swept)
    parsed(text)
    assert "Highest rate within the SLO: 10/s" in text


def test_compare_sees_what_got_slower() -> None:
    found = compare(report(), report(1.3))
    changes = {row.figure: row.change for row in found.differences}
    assert changes["e2e_ms avg"] is Change.WORSE
    assert changes["e2e_ms p50"] is Change.WORSE
    assert changes["attainment"] is Change.WORSE
    assert found.warnings == ()


def test_compare_with_itself_sees_nothing() -> None:
    found = compare(report(), report())
    assert {row.change for row in found.differences} == {Change.UNCLEAR}
    assert found == compare(report(), report())


def test_compare_warns_of_different_experiments() -> None:
    assert "the workflows differ: w and v" in compare(report(), report(name="v")).warnings


def test_compare_refuses_reports_of_nothing() -> None:
    with pytest.raises(InvalidArgument, match="the second report has 0 answered requests"):
        compare(report(), assess(measured([]), terms()))
