import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.boxes import iou, nms

A, INSIDE_A, FAR = [0, 0, 10, 10], [0, 0, 5, 10], [50, 50, 60, 60]


def boxes(*rows):
    return np.array(rows, float)


def test_iou_over_union_and_over_the_smaller():
    np.testing.assert_allclose(iou(boxes(A)[0], boxes(A, INSIDE_A, FAR)), [1, 0.5, 0])
    np.testing.assert_allclose(iou(boxes(A)[0], boxes(A, INSIDE_A, FAR), of_smaller=True), [1, 1, 0])


def test_iou_of_an_empty_box_is_zero():
    assert iou(np.zeros(4), boxes([0, 0, 0, 0]))[0] == 0


def test_nms_keeps_the_surest_of_rivals_best_first():
    kept = nms(boxes(INSIDE_A, A, FAR), np.array([0.6, 0.7, 0.9]), 0.4)
    assert kept.tolist() == [2, 1]


def test_nms_of_different_groups_do_not_compete():
    kept = nms(boxes(A, A), np.array([0.6, 0.7]), 0.4, groups=np.array([1, 2]))
    assert kept.tolist() == [1, 0]


@pytest.mark.parametrize("groups", [None, np.empty(0, int)])
def test_nms_of_nothing(groups):
    assert nms(np.empty((0, 4)), np.empty(0), 0.5, groups).tolist() == []


edge = st.integers(0, 20)
box = st.tuples(edge, edge, st.integers(1, 20), st.integers(1, 20)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@given(st.lists(st.tuples(box, st.floats(0, 1)), max_size=12), st.floats(0.1, 0.9))
def test_nms_kept_do_not_overlap_and_dropped_have_a_better_rival(found, overlap):
    every = boxes(*(b for b, _ in found)).reshape(-1, 4)
    scores = np.array([score for _, score in found])
    kept = nms(every, scores, overlap).tolist()
    for i in range(len(found)):
        rivals = [k for k in kept if k != i and iou(every[i], every[[k]])[0] > overlap]
        assert (i in kept) == (not rivals)
        assert i in kept or max(scores[rivals]) >= scores[i]
