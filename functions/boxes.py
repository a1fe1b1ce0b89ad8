"""Boxes as arrays (N, 4) of x0, y0, x1, y1 in pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def iou(box: Array, others: Array, of_smaller: bool = False) -> Array:
    """Overlap of one box with each of the others: intersection over union, or over the smaller of the two."""
    corner, far = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inside = np.clip(far - corner, 0, None).prod(1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(1)
    return inside / np.maximum(np.minimum(area, areas) if of_smaller else area + areas - inside, 1e-9)


def nms(boxes: Array, scores: Array, overlap: float, groups: Array | None = None, of_smaller: bool = False) -> Array:
    """Non-maximum suppression: indices of the boxes to keep, best first; boxes of different groups don't compete."""
    order, keep = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        rival = iou(boxes[best], boxes[order], of_smaller) > overlap
        order = order[~rival if groups is None else ~(rival & (groups[order] == groups[best]))]
    return np.array(keep, int)
