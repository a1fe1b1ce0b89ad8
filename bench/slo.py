"""Does a plan keep its promise on this machine, and what is it worth? (`bench.live` says how it is measured.)"""

from __future__ import annotations

from bench import live
from bench.report import Report, arguments, finish


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    print(f"seed {live.SEED}")
    report = Report("slo")
    live.measure(report, quick=options.quick)
    finish(report, options)


if __name__ == "__main__":
    main()
