"""How many threads the numeric libraries of a container use."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Read by libraries when they are loaded."""


def name_thread_count(environ: MutableMapping[str, str], threads: int) -> None:
    """For libraries that will be loaded."""
    for variable in VARIABLES:
        environ[variable] = str(threads)


def set_compute_threads(threads: int) -> None:
    """For this process, libraries loaded already included: torch's pool, and the BLAS and OpenMP of others."""
    already = os.environ.get(VARIABLES[0]) == str(threads)
    name_thread_count(os.environ, threads)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads") and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if not already and "numpy" in sys.modules:
        import threadpoolctl

        threadpoolctl.threadpool_limits(threads)
