"""dataflower: a serverless workflow engine with dataflow execution.

What user code needs is here; importing it costs little (no torch, no gRPC).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataflower.spec.context import Context
from dataflower.spec.function import Json, Stream, Tensor, Text, function

if TYPE_CHECKING:
    from dataflower.gateway.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Context", "Json", "Stream", "Tensor", "Text", "__version__", "function"]

_LAZY = {"Client": "dataflower.gateway.client", "AsyncClient": "dataflower.gateway.client"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dataflower' has no attribute {name!r}")
