"""Does a plan keep its promise, and what is it worth?

On this machine (`bench.live` says how that is measured) and, but with `--quick`, in the simulator (`bench.simulated`).
"""

from __future__ import annotations

from bench import live, simulated
from bench.report import Report, arguments, finish


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    print(f"seed {live.SEED}")
    report = Report("slo")
    live.measure(report, quick=options.quick)
    if not options.quick:  # it has a quick form of its own
        simulated.measure(report, quick=False, seconds=20.0)
    finish(report, options)


if __name__ == "__main__":
    main()
