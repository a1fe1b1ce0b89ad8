"""Which way heads are turned: faces with five landmarks (CenterFace, run by OpenCV), angles, tracks, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataflower.spec.function import Json, function
from functions import assets
from functions.boxes import iou, nms

Facts = Mapping[str, Any]

STRIDE = 4
"""The maps of the network have one cell for so many pixels."""
MULTIPLE = 32
"""Sides of its input must be multiples of this."""
OUTPUTS = ("537", "538", "539", "540")
"""Heat, sizes, offsets, landmarks."""


@function(batch=True, outputs={"heads": Json()})
class Estimate:
    """Heads of a frame: box, score, and eyes, nose and corners of the mouth. Takes several frames at once."""

    def setup(self, width: int = 384, threshold: float = 0.5, overlap: float = 0.3) -> None:
        cv2.setNumThreads(1)
        self.net = cv2.dnn.readNetFromONNX(str(assets.find(assets.CENTERFACE, "centerface.onnx")))
        self.width, self.threshold, self.overlap = width, threshold, overlap

    def __call__(self, frame: Sequence[NDArray[np.uint8]]) -> list[list[Facts]]:
        height, width = frame[0].shape[:2]
        size = (self.width, max(MULTIPLE, round(height * self.width / width / MULTIPLE) * MULTIPLE))
        pictures = np.stack([cv2.resize(np.asarray(one), size) for one in frame]).astype(np.float32)
        self.net.setInput(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        maps = [np.asarray(found) for found in self.net.forward(list(OUTPUTS))]
        scale = np.array([width / size[0], height / size[1]])
        return [self._heads([found[i] for found in maps], scale) for i in range(len(frame))]

    def _heads(self, maps: Sequence[NDArray[np.float32]], scale: NDArray[np.float64]) -> list[Facts]:
        heat, sizes, offsets, marks = maps
        rows, columns = np.nonzero(heat[0] > self.threshold)
        if not len(rows):
            return []
        height, width = np.exp(sizes[:, rows, columns]) * STRIDE
        top = (rows + offsets[0, rows, columns] + 0.5) * STRIDE - height / 2
        left = (columns + offsets[1, rows, columns] + 0.5) * STRIDE - width / 2
        boxes = np.stack([left, top, left + width, top + height], 1)
        scores = heat[0, rows, columns]
        points = marks[:, rows, columns].reshape(5, 2, -1)  # y, x as shares of the box
        heads = []
        for i in nms(boxes, scores, self.overlap):
            x = (points[:, 1, i] * width[i] + left[i]) * scale[0]
            y = (points[:, 0, i] * height[i] + top[i]) * scale[1]
            heads.append(
                {
                    "score": round(float(scores[i]), 3),
                    "box": [round(float(v), 1) for v in boxes[i] * np.tile(scale, 2)],
                    "marks": [[round(float(a), 1), round(float(b), 1)] for a, b in zip(x, y, strict=True)],
                }
            )
        return heads


@function(outputs={"turns": Json()})
def recognise(heads: Sequence[Facts]) -> list[Facts]:
    """Which way each head is turned, from where the nose is between the eyes and the mouth, in degrees.

    Rough, as five points are: `yaw` to the side, `pitch` up and down, `roll` by how the eyes are tilted.
    """
    turns = []
    for head in heads:
        left, right, nose, mouth_left, mouth_right = (np.array(mark) for mark in head["marks"])
        eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
        across = float(np.linalg.norm(right - left)) or 1.0
        down = float(np.linalg.norm(mouth - eyes)) or 1.0
        side = float((nose - eyes) @ (right - left)) / across**2
        along = float((nose - eyes) @ (mouth - eyes)) / down**2
        tilt = np.degrees(np.arctan2(right[1] - left[1], right[0] - left[0]))
        turns.append(
            {
                "yaw": round(float(np.degrees(np.arcsin(np.clip(2 * side, -1, 1)))), 1),
                "pitch": round(float(np.degrees(np.arcsin(np.clip(2 * (along - 0.5), -1, 1)))), 1),
                "roll": round(float(tilt), 1),
            }
        )
    return turns


@function(outputs={"places": Json()})
def place(heads: Sequence[Facts], at: Facts) -> list[Facts]:
    """Where the heads of a frame are, for linking them from frame to frame."""
    return [{"index": at["index"], "box": head["box"]} for head in heads]


@function(outputs={"report": Json()})
def judge(turns: Sequence[Sequence[Facts]], places: Sequence[Sequence[Facts]], facing: float = 25.0) -> Facts:
    """Heads linked from frame to frame, and how much of its time each faces the camera (within `facing` degrees)."""
    tracks: list[dict[str, Any]] = []
    for turned, placed in zip(turns, places, strict=True):
        free = list(tracks)
        for turn, here in zip(turned, placed, strict=True):
            box = np.array(here["box"])
            close = [(float(iou(box, np.array([t["box"]]))[0]), i) for i, t in enumerate(free)]
            best, i = max(close, default=(0.0, -1))
            track = free.pop(i) if best > 0.2 else {"turns": [], "first": here["index"]}
            if best <= 0.2:
                tracks.append(track)
            track["box"] = here["box"]
            track["turns"].append(turn)
    people = [
        {
            "first_frame": track["first"],
            "frames": len(track["turns"]),
            "facing": round(sum(abs(t["yaw"]) <= facing for t in track["turns"]) / len(track["turns"]), 3),
            "yaw": round(float(np.median([t["yaw"] for t in track["turns"]])), 1),
        }
        for track in tracks
    ]
    return {"frames": len(turns), "heads": sum(len(turned) for turned in turns), "people": people}
