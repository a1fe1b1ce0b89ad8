"""The measured requests as CSV, a line each."""

from __future__ import annotations

import csv
import io

from dataflower.loadgen.report import Columns, Report

COLUMNS = Columns.__struct_fields__


def requests_csv(report: Report) -> str:
    """`number,scheduled_s,lag_ms,latency_ms,ttft_ms,itl_ms,tpot_ms,code,good`; empty cells for what there is not."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    columns = [getattr(report.requests, name) for name in COLUMNS]
    for row in zip(*columns, strict=True):
        writer.writerow(["" if v is None else int(v) if isinstance(v, bool) else v for v in row])
    return text.getvalue()
