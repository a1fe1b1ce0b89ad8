import numpy as np
import pytest

from functions import linalg


@pytest.mark.parametrize(("rows", "columns", "parts"), [(200, 8, 4), (201, 8, 7), (64, 16, 1), (60, 16, 6)])
def test_svd_by_blocks_is_the_svd(rows, columns, parts):
    made = [*linalg.blocks(rows, columns, parts, seed=3)]
    assert sum(len(block) for block in made) == rows
    got = linalg.combine([linalg.qr(block) for block in made])
    _, sigma, vt = np.linalg.svd(np.vstack(made), full_matrices=False)
    np.testing.assert_allclose(got["sigma"], sigma, rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(got["vt"] * vt, 1)), 1, rtol=1e-8)


def test_second_pass_finds_the_result_right_and_a_wrong_one_wrong():
    made = [*linalg.blocks(300, 8, 3)]
    right = linalg.combine([linalg.qr(block) for block in made])

    def report(sigma):
        projected = [linalg.project(block, sigma, right["vt"]) for block in made]
        return linalg.check((p["u"] for p in projected), [p["part"] for p in projected], sigma)

    assert report(right["sigma"])["relative_error"] < 1e-12
    assert report(right["sigma"])["orthogonality_error"] < 1e-10
    assert report(right["sigma"] * 2)["orthogonality_error"] > 0.5
