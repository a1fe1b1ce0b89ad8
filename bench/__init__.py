"""Benchmarks: one file per question, asked in its first line. `python -m bench.NAME [--quick] [--json FILE]`."""
