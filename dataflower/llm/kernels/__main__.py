"""Compile the kernels of this package for this processor: `python -m dataflower.llm.kernels`."""

from __future__ import annotations

import sys

from dataflower.errors import DataflowerError
from dataflower.llm.kernels import library


def main() -> int:
    """Compile them, and say where they are."""
    try:
        print(library.build())
    except DataflowerError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
