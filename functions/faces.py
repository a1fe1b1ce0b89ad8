"""Faces in a picture: MTCNN, three small networks, each of which looks closer at what the one before let through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from dataflower.spec.function import Json, function
from functions import assets
from functions.boxes import nms

CELL = 12
"""The first network looks at squares of this many pixels, every second pixel."""
SHRINK = 0.709
"""From one picture of the pyramid to the next: half the area."""


class Net(nn.Module):
    """Convolutions (each with PReLU and max pooling), then two heads: face or not, and how to move the box."""

    def __init__(self, convs: list[tuple[int, int, int]], pools: list[int], dense: tuple[int, int] | None) -> None:
        super().__init__()
        self.pools, self.depth, self.dense = pools, len(convs), dense is not None
        for i, (before, after, kernel) in enumerate(convs, 1):
            self.add_module(f"conv{i}", nn.Conv2d(before, after, kernel))
            self.add_module(f"prelu{i}", nn.PReLU(after))
        n = self.depth + 1
        if dense:
            self.add_module(f"dense{n}", nn.Linear(*dense))
            self.add_module(f"prelu{n}", nn.PReLU(dense[1]))
            self.heads = [f"dense{n + 1}_{k}" for k in (1, 2)]
            for name, size in zip(self.heads, (2, 4), strict=True):
                self.add_module(name, nn.Linear(dense[1], size))
        else:
            self.heads = [f"conv{n}_{k}" for k in (1, 2)]
            for name, size in zip(self.heads, (2, 4), strict=True):
                self.add_module(name, nn.Conv2d(convs[-1][1], size, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for i, pool in enumerate(self.pools, 1):
            x = self.get_submodule(f"prelu{i}")(self.get_submodule(f"conv{i}")(x))
            x = F.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
        if self.dense:  # the weights come from a library that keeps width before height
            x = x.permute(0, 3, 2, 1).flatten(1)
            n = self.depth + 1
            x = self.get_submodule(f"prelu{n}")(self.get_submodule(f"dense{n}")(x))
        face, move = (self.get_submodule(name)(x) for name in self.heads)
        return face.softmax(1)[:, 1], move


@function(outputs={"faces": Json()})
class FindFaces:
    """Faces in a crop, in pixels of the frame that `where` (an object with its `box`) says the crop was taken from."""

    def setup(self, min_face: int = 20, zoom: float = 2.0, thresholds: tuple[float, ...] = (0.6, 0.7, 0.7)) -> None:
        self.propose = Net([(3, 10, 3), (10, 16, 3), (16, 32, 3)], [2, 0, 0], None)
        self.refine = Net([(3, 28, 3), (28, 48, 3), (48, 64, 2)], [3, 3, 0], (576, 128))
        self.output = Net([(3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2)], [3, 3, 2, 0], (1152, 256))
        weights = load_file(assets.find(assets.MTCNN, "mtcnn.safetensors"))
        for prefix, net in (("pnet.", self.propose), ("rnet.", self.refine), ("onet.", self.output)):
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            net.load_state_dict(own)
            net.eval()
        self.min_face, self.zoom, self.thresholds = min_face, zoom, thresholds

    def __call__(self, crop: NDArray[np.uint8], where: Mapping[str, Any]) -> list[dict[str, Any]]:
        left, top = where["box"][:2]
        return [
            {"score": round(float(score), 3), "box": [round(float(edge), 1) for edge in box + [left, top] * 2]}
            for box, score in zip(*self.find(crop), strict=True)
        ]

    @torch.inference_mode()
    def find(self, picture: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes (N, 4) in pixels of the picture, and how sure each is."""
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
        x = F.interpolate((x - 127.5) / 128, scale_factor=self.zoom, mode="bilinear", antialias=True)
        boxes, scores = self._proposals(x)
        boxes = _square(boxes)
        for net, size, sure in ((self.refine, 24, self.thresholds[1]), (self.output, 48, self.thresholds[2])):
            if not len(boxes):
                break
            face, move = (out.numpy() for out in net(_cut(x, boxes, size)))
            keep = face > sure
            boxes, scores = _moved(boxes[keep], move[keep]), face[keep]
            last = net is self.output
            kept = nms(boxes, scores, 0.7, of_smaller=last)
            boxes, scores = boxes[kept] if last else _square(boxes[kept]), scores[kept]
        return boxes / self.zoom, scores

    def _proposals(self, x: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the first network sees a face, at any scale from `min_face` pixels up to the whole picture."""
        found: list[NDArray[np.float64]] = []
        scale = CELL / (self.min_face * self.zoom)
        while min(x.shape[2:]) * scale >= CELL:
            size = [int(edge * scale + 1) for edge in x.shape[2:]]
            face, move = (out.numpy() for out in self.propose(F.interpolate(x, size, mode="area")))
            rows, columns = np.nonzero(face[0] > self.thresholds[0])
            corner = 2 * np.stack([columns, rows], 1)
            boxes = np.hstack([corner + 1, corner + CELL]) / scale
            scores = face[0, rows, columns]
            kept = nms(boxes, scores, 0.5)
            found.append(np.hstack([boxes, move[0][:, rows, columns].T, scores[:, None]])[kept])
            scale *= SHRINK
        every = np.concatenate(found) if found else np.empty((0, 9))
        every = every[nms(every[:, :4], every[:, 8], 0.7)]
        return _moved(every[:, :4], every[:, 4:8]), every[:, 8]


def _moved(boxes: NDArray[np.float64], move: NDArray[np.float64]) -> NDArray[np.float64]:
    extent = boxes[:, 2:] - boxes[:, :2]
    moved: NDArray[np.float64] = boxes + move * np.hstack([extent, extent])
    return moved


def _square(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.hstack([centre - side, centre + side])


def _cut(x: torch.Tensor, boxes: NDArray[np.float64], size: int) -> torch.Tensor:
    """The boxes' content, each scaled to a square of `size` pixels; what lies outside the picture is grey."""
    height, width = x.shape[2:]
    parts = []
    for x0, y0, x1, y1 in np.trunc(boxes).astype(int):
        rows, columns = slice(min(max(y0, 0), height - 1), max(y1, 1)), slice(min(max(x0, 0), width - 1), max(x1, 1))
        pad = (max(-x0, 0), max(x1 - width, 0), max(-y0, 0), max(y1 - height, 0))
        parts.append(F.interpolate(F.pad(x[:, :, rows, columns], pad), size=(size, size), mode="area"))
    return torch.cat(parts)
