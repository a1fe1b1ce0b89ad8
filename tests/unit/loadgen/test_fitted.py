"""Made-up requests have the figures that they are made after, and are the same for the same seed."""

import numpy as np
import pytest

from dataflower.loadgen.fitted import FITS, fitted


@pytest.mark.parametrize("name", FITS)
def test_figures_are_met(name):
    fit = FITS[name]
    made = fitted(fit, 200_000, seed=3)
    gaps = np.diff(made.at)
    assert (gaps >= 0).all()
    assert 1 / gaps.mean() == pytest.approx(fit.rate, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(fit.cv, rel=0.1)
    for found, (median, high) in ((made.prompt, fit.prompt), (made.output, fit.output)):
        assert np.median(found) == pytest.approx(median, rel=0.05)
        assert np.percentile(found, 99) == pytest.approx(high, rel=0.05)
        assert found.min() >= 1


def test_seed_decides():
    one, same, other = (fitted(FITS["code"], 50, seed).at.tolist() for seed in (1, 1, 2))
    assert one == same != other
