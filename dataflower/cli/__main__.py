"""`python -m dataflower.cli`: the same as the `dataflower` script."""

from __future__ import annotations

from dataflower.cli import main

main()
