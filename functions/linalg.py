"""Singular value decomposition of a tall matrix that comes in blocks of rows (tall-skinny QR, then a small SVD)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflower.spec.function import Json, Stream, Tensor, function


@function(outputs={"block": Stream(Tensor("FP64"))})
def blocks(rows: int = 40_000, columns: int = 64, parts: int = 8, seed: int = 1) -> Iterator[NDArray[np.float64]]:
    """A random matrix of a falling spectrum, made block by block, so that it need not fit into memory."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((columns, columns)))[0] * 0.8 ** np.arange(columns)
    for size in (len(part) for part in np.array_split(np.empty(rows), parts)):
        yield rng.standard_normal((size, columns)) @ mix.T


@function(outputs={"r": Tensor("FP64", ["K", "C"])})
def qr(block: NDArray[np.float64]) -> NDArray[np.float64]:
    """R of the block's QR decomposition: all that the singular values need to know of it."""
    return np.linalg.qr(block, mode="r")


@function(outputs={"sigma": Tensor("FP64", ["C"]), "vt": Tensor("FP64", ["C", "C"])})
def combine(rs: Sequence[NDArray[np.float64]]) -> Mapping[str, NDArray[np.float64]]:
    """Singular values and right singular vectors of the whole matrix from the blocks' R factors."""
    _, sigma, vt = np.linalg.svd(np.linalg.qr(np.vstack(rs), mode="r"), full_matrices=False)
    return {"sigma": sigma, "vt": vt}


@function(outputs={"u": Tensor("FP64", ["R", "C"]), "part": Json()})
def project(block: NDArray[np.float64], sigma: NDArray[np.float64], vt: NDArray[np.float64]) -> Mapping[str, Any]:
    """The block's rows of U, and how well they do: squared error of U S V' and the squared norm of the block."""
    u = block @ vt.T / sigma
    error = np.linalg.norm(block - u * sigma @ vt)
    return {"u": u, "part": {"error": float(error**2), "norm": float(np.linalg.norm(block) ** 2)}}


@function(outputs={"report": Json()})
def check(
    us: Stream[NDArray[np.float64]], parts: Sequence[Mapping[str, float]], sigma: NDArray[np.float64]
) -> Mapping[str, Any]:
    """Relative error of U S V', and how far the columns of U are from orthonormal, block by block."""
    product = np.zeros((len(sigma), len(sigma)))
    for u in us:
        product += u.T @ u
    return {
        "largest": [round(float(value), 6) for value in sigma[:5]],
        "condition": float(sigma[0] / sigma[-1]),
        "relative_error": (sum(p["error"] for p in parts) / sum(p["norm"] for p in parts)) ** 0.5,
        "orthogonality_error": float(np.abs(product - np.eye(len(sigma))).max()),
    }
