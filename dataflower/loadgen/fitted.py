"""Requests to language models made up after recorded ones: for benches on machines that have no recordings.

Gaps are gamma distributed with the rate and the coefficient of variation of the recording, token counts log-normal
through its median and 99th percentile. What is lost: correlation between neighbours, days, and prompts that are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z99 = 2.3263478740408408
"""99th percentile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Figures of a recording: requests a second, variation of the gaps, (median, 99th percentile) of token counts."""

    rate: float
    cv: float
    prompt: tuple[float, float]
    output: tuple[float, float]


FITS = {
    "conversation": Fit(5.53, 1.09, (1020, 4142), (129, 601)),
    "code": Fit(2.57, 13.2, (1469, 7436), (13, 252)),
}
"""Measured of the Azure LLM inference traces of 2023 (CC-BY-4.0), the hour each of conversations and of code."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Times in seconds, rising, and token counts of each request."""

    at: NDArray[np.float64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]


def fitted(fit: Fit, count: int, seed: int = 0) -> Requests:
    """`count` requests, the same for the same seed."""
    random = np.random.default_rng(seed)
    shape = 1.0 / fit.cv**2
    gaps = random.gamma(shape, 1.0 / (shape * fit.rate), count)
    return Requests(np.cumsum(gaps), _tokens(random, count, *fit.prompt), _tokens(random, count, *fit.output))


def _tokens(random: np.random.Generator, count: int, median: float, high: float) -> NDArray[np.int64]:
    drawn = random.lognormal(math.log(median), math.log(high / median) / _Z99, count)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)
