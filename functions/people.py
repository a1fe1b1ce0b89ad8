"""Who is in a picture: about how old, and of which sex, the faces look. Networks of dlib, as ONNX, run by OpenCV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataflower.spec.function import Json, Stream, Tensor, function
from functions import assets
from functions.faces import FindFaces

Facts = Mapping[str, Any]

MEANS = np.array([122.781998, 117.000999, 104.297997], np.float32)
AGE_PIXELS, SEX_PIXELS = 64, 32
MARGIN = 0.2
"""How much of the box's size is added on each side, about as much as in the pictures that the networks know."""


@function(outputs={"faces": Json(), "face": Stream(Tensor("UINT8", [64, 64, 3]))})
class CutFaces:
    """Finds the faces of a frame; streams each as a small square picture. `faces` has their boxes and scores."""

    def setup(self, width: int = 480, min_face: int = 24) -> None:
        cv2.setNumThreads(1)
        self.finder = FindFaces()
        self.finder.setup(min_face=min_face, zoom=1.0)
        self.width = width

    def __call__(self, frame: NDArray[np.uint8]) -> Generator[Facts, None, Facts]:
        scale = min(1.0, self.width / frame.shape[1])
        small = cv2.resize(frame, None, fx=scale, fy=scale) if scale < 1 else frame
        boxes, scores = self.finder.find(np.asarray(small, np.uint8))
        for box in boxes / scale:
            yield {"face": chip(frame, box, AGE_PIXELS)}
        found = zip(boxes / scale, scores, strict=True)
        return {"faces": [{"score": round(float(s), 3), "box": [round(float(e), 1) for e in b]} for b, s in found]}


def chip(frame: NDArray[np.uint8], box: NDArray[np.float64], pixels: int) -> NDArray[np.uint8]:
    """The square round a box, with a margin, scaled to `pixels`; what lies outside the frame repeats its edge."""
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() * (0.5 + MARGIN)
    scale = pixels / (2 * half)
    move = np.array([[scale, 0, pixels / 2 - scale * centre[0]], [0, scale, pixels / 2 - scale * centre[1]]])
    cut = cv2.warpAffine(frame, move, (pixels, pixels), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.uint8)


@function(batch=True, outputs={"person": Json()})
class Describe:
    """Age in years, how sure that is, and the sex that a face looks like. Takes several faces at once."""

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self.age = cv2.dnn.readNetFromONNX(str(assets.find(assets.AGES, "age-v1.onnx")))
        self.sex = cv2.dnn.readNetFromONNX(str(assets.find(assets.AGES, "gender-v1.onnx")))
        self.years = np.arange(81, dtype=np.float64)
        self.years[0] = 0.25

    def __call__(self, face: Sequence[NDArray[np.uint8]]) -> list[Facts]:
        ages = self._run(self.age, np.stack(face))
        sexes = self._run(self.sex, np.stack([cv2.resize(one, (SEX_PIXELS, SEX_PIXELS)) for one in face]))
        mean = ages @ self.years
        spread = np.sqrt(np.maximum(ages @ self.years**2 - mean**2, 0.0))
        return [
            {
                "age": round(float(m), 1),
                "give_or_take": round(float(s), 1),
                "looks": ("female", "male")[int(p.argmax())],
                "sure": round(float(p.max()), 3),
            }
            for m, s, p in zip(mean, spread, sexes, strict=True)
        ]

    @staticmethod
    def _run(net: Any, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities (N, classes)."""
        net.setInput(np.ascontiguousarray(((pictures - MEANS) / 256).transpose(0, 3, 1, 2), np.float32))
        return np.asarray(net.forward(), np.float64).reshape(len(pictures), -1)


@function(outputs={"record": Json()})
def together(at: Facts, faces: Sequence[Facts], people: Sequence[Facts]) -> Facts:
    """One record for each frame: its faces, each with who it looks like."""
    return {**at, "faces": [{**face, **person} for face, person in zip(faces, people, strict=True)]}


@function(outputs={"report": Json()})
def census(records: Sequence[Facts]) -> Facts:
    """Over the whole video: frames with faces, the most at once, the median age, and what they look like."""
    faces = [face for record in records for face in record["faces"]]
    return {
        "frames": len(records),
        "with_faces": sum(1 for record in records if record["faces"]),
        "most_at_once": max((len(record["faces"]) for record in records), default=0),
        "age": round(float(np.median([face["age"] for face in faces])), 1) if faces else None,
        "looks": dict(Counter(face["looks"] for face in faces).most_common()),
        "records": list(records),
    }
