"""Objects in a frame: YOLOv3-tiny, 80 COCO classes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dataflower.spec.function import Json, Stream, Tensor, function
from functions import assets
from functions.boxes import nms
from functions.darknet import Darknet

STRIDE = 32
"""The network halves its input five times."""


@function(outputs={"objects": Json(), "crop": Stream(Tensor("UINT8")), "where": Stream(Json())})
class Detect:
    """Finds objects; streams a crop for each that is of a class in `crops`, with its box (`where`)."""

    def setup(
        self,
        size: int = 416,
        threshold: float = 0.3,
        overlap: float = 0.45,
        crops: Sequence[str] = ("person",),
        min_crop: int = 24,
    ) -> None:
        folder = assets.find(assets.YOLO)
        self.net = Darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights").eval()
        self.names = (folder / "coco.names").read_text().split("\n")
        self.size, self.threshold, self.overlap = size, threshold, overlap
        self.crops, self.min_crop = frozenset(crops), min_crop

    def __call__(self, frame: NDArray[np.uint8]) -> Generator[Mapping[str, Any], None, Mapping[str, Any]]:
        objects = self.detect(frame)
        for found in objects:
            x0, y0, x1, y1 = (int(edge) for edge in found["box"])
            if found["label"] in self.crops and min(x1 - x0, y1 - y0) >= self.min_crop:
                yield {"crop": frame[y0:y1, x0:x1], "where": found}
        return {"objects": objects}

    @torch.inference_mode()
    def detect(self, frame: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Objects as `{"label", "score", "box": [x0, y0, x1, y1]}`, surest first, in pixels of the frame."""
        picture, scale, left, top = letterbox(frame, self.size)
        tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        return self.read(self.net(tensor)[0].numpy(), frame.shape, scale, (left, top))

    def read(
        self, found: NDArray[np.float32], shape: Sequence[int], scale: float, corner: tuple[int, int]
    ) -> list[dict[str, Any]]:
        """What the candidates of a letterboxed frame of this shape say."""
        left, top = corner
        scores = found[:, 4:5] * found[:, 5:]
        rows, classes = np.nonzero(scores > self.threshold)
        sure = scores[rows, classes]
        boxes = np.hstack([found[rows, :2] - found[rows, 2:4] / 2, found[rows, :2] + found[rows, 2:4] / 2])
        boxes = (boxes - [left, top, left, top]) / scale
        boxes = boxes.clip(0, [shape[1], shape[0]] * 2)
        return [
            {
                "label": self.names[classes[i]],
                "score": round(float(sure[i]), 3),
                "box": [round(float(edge), 1) for edge in boxes[i]],
            }
            for i in nms(boxes, sure, self.overlap, classes)
        ]


@function(batch=True, outputs={"objects": Json()})
class Objects:
    """Finds objects in frames of one size, several frames at once; what is found is as with `Detect`."""

    def setup(self, size: int = 416, threshold: float = 0.3, overlap: float = 0.45) -> None:
        self.finder = Detect()
        self.finder.setup(size=size, threshold=threshold, overlap=overlap)

    @torch.inference_mode()
    def __call__(self, frame: Sequence[NDArray[np.uint8]]) -> list[list[dict[str, Any]]]:
        boxed = [letterbox(np.asarray(one), self.finder.size) for one in frame]
        pictures = torch.from_numpy(np.stack([picture for picture, *_ in boxed])).permute(0, 3, 1, 2).float() / 255
        found = self.finder.net(pictures).numpy()
        return [
            self.finder.read(candidates, one.shape, scale, (left, top))
            for candidates, one, (_, scale, left, top) in zip(found, frame, boxed, strict=True)
        ]


@function(outputs={"crop": Stream(Tensor("UINT8")), "where": Stream(Json())})
def crops(
    frame: NDArray[np.uint8],
    objects: Sequence[Mapping[str, Any]],
    labels: Sequence[str] = ("person",),
    min_crop: int = 24,
) -> Generator[Mapping[str, Any], None, None]:
    """A crop of the frame for each object of these labels that is at least `min_crop` pixels wide and high."""
    for found in objects:
        x0, y0, x1, y1 = (int(edge) for edge in found["box"])
        if found["label"] in labels and min(x1 - x0, y1 - y0) >= min_crop:
            yield {"crop": frame[y0:y1, x0:x1], "where": found}


def letterbox(frame: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], float, int, int]:
    """Scale the longer side to `size`, pad with grey to multiples of the stride.

    Returns:
        The picture, the scale, and the padding on the left and at the top.
    """
    scale = size / max(frame.shape[:2])
    height, width = (max(round(edge * scale), 1) for edge in frame.shape[:2])
    picture = np.full((-(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE, 3), 128, np.uint8)
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    picture[top : top + height, left : left + width] = cv2.resize(frame, (width, height))
    return picture, scale, left, top
