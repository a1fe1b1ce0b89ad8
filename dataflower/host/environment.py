"""Which environment variables of the server its containers get to see."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

HARMLESS = (
    "CUDA_*",
    "DATAFLOWER_CACHE",
    "DATAFLOWER_FAILPOINTS",
    "GOMP_*",
    "HF_*",
    "HOME",
    "KMP_*",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "LD_*",
    "LOGNAME",
    "MALLOC_*",
    "MKL_*",
    "NUMBA_*",
    "NUMEXPR_*",
    "NVIDIA_*",
    "OMP_*",
    "OPENBLAS_*",
    "PATH",
    "PYTHON*",
    "PYTORCH_*",
    "SHELL",
    "TERM",
    "TOKENIZERS_*",
    "TORCH*",
    "TRANSFORMERS_*",
    "TRITON_*",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
)
"""What libraries look at; everything else may be a secret."""
SECRET = ("*TOKEN", "*SECRET*", "*PASSWORD*", "*CREDENTIAL*", "*_KEY", "*_KEYS")


def visible(environ: Mapping[str, str], also: Iterable[str] = ()) -> dict[str, str]:
    """The variables that a sandboxed container sees.

    Args:
        environ: the server's.
        also: further names, or patterns with `*`, which the server was told to pass on.
    """
    asked = tuple(also)
    return {
        name: value
        for name, value in environ.items()
        if _matches(name, asked) or (_matches(name, HARMLESS) and not _matches(name, SECRET))
    }


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
