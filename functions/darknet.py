"""A Darknet network (`.cfg` and `.weights`) as a torch module: the layers that YOLOv3 and its tiny sister use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Block = Mapping[str, str]
EPSILON = 1e-5
"""Darknet's batch normalisation adds this to the variance."""


def read_cfg(text: str) -> list[dict[str, str]]:
    """Sections of a `.cfg`, in order; the section's name is under `type`."""
    blocks: list[dict[str, str]] = []
    for line in (raw.split("#")[0].strip() for raw in text.splitlines()):
        if line.startswith("["):
            blocks.append({"type": line.strip("[]")})
        elif line:
            key, value = line.split("=", 1)
            blocks[-1][key.strip()] = value.strip()
    return blocks


class Weights:
    """A `.weights` file, read front to back."""

    def __init__(self, path: Path) -> None:
        self._data = np.fromfile(path, np.float32)
        self._at = 5  # major, minor, revision, and the number of images seen as int64

    def take(self, *shape: int) -> Tensor:
        count = int(np.prod(shape))
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise ValueError("the weights end before the network does: wrong .cfg for this .weights?")
        self._at += count
        return torch.from_numpy(part.copy()).view(shape)

    @property
    def left(self) -> int:
        return len(self._data) - self._at


class Darknet(nn.Module):
    """From pictures (N, 3, H, W) in 0..1, H and W multiples of 32, to candidates (N, M, 5 + classes).

    A candidate is centre x, centre y, width, height in pixels of the input, then objectness and class
    probabilities. Batch normalisation is folded into the convolutions when the weights are read.
    """

    def __init__(self, cfg: Path, weights: Path) -> None:
        super().__init__()
        head, *self.blocks = read_cfg(cfg.read_text())
        source = Weights(weights)
        self.layers = nn.ModuleList()
        channels: list[int] = []
        last = int(head["channels"])
        for block in self.blocks:
            layer: nn.Module = nn.Identity()
            match block["type"]:
                case "convolutional":
                    layer = _convolution(block, last, source)
                    last = int(block["filters"])
                case "upsample":
                    layer = nn.Upsample(scale_factor=int(block["stride"]))
                case "route":
                    last = sum(channels[i] for i in _numbers(block["layers"]))
                case "maxpool" | "shortcut" | "yolo":
                    pass
                case other:
                    raise ValueError(f"layer [{other}] is not known here")
            self.layers.append(layer)
            channels.append(last)
        if source.left:
            raise ValueError(f"{source.left} weights are left over: wrong .cfg for this .weights?")

    def forward(self, x: Tensor) -> Tensor:
        height, outputs, candidates = x.shape[2], list[Tensor](), list[Tensor]()
        for block, layer in zip(self.blocks, self.layers, strict=True):
            match block["type"]:
                case "maxpool":
                    x = _maxpool(x, int(block["size"]), int(block["stride"]))
                case "route":
                    x = torch.cat([outputs[i] for i in _numbers(block["layers"])], 1)
                case "shortcut":
                    x = x + outputs[int(block["from"])]
                case "yolo":
                    candidates.append(_candidates(x, block, height // x.shape[2]))
                case _:
                    x = layer(x)
            outputs.append(x)
        return torch.cat(candidates, 1)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _convolution(block: Block, channels: int, source: Weights) -> nn.Module:
    size, filters = int(block["size"]), int(block["filters"])
    conv = nn.Conv2d(channels, filters, size, int(block["stride"]), size // 2 if int(block["pad"]) else 0)
    bias = source.take(filters)
    if int(block.get("batch_normalize", "0")):
        gain, mean, variance = source.take(filters), source.take(filters), source.take(filters)
        scale = gain / (variance + EPSILON).sqrt()
        bias = bias - mean * scale
    else:
        scale = torch.ones(filters)
    weight = source.take(filters, channels, size, size) * scale.view(-1, 1, 1, 1)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(conv, nn.LeakyReLU(0.1)) if block["activation"] == "leaky" else conv


def _maxpool(x: Tensor, size: int, stride: int) -> Tensor:
    if stride == 1:  # Darknet pads on the right and below, with values that never win
        x = F.pad(x, (0, size - 1, 0, size - 1), mode="replicate")
    return F.max_pool2d(x, size, stride)


def _candidates(x: Tensor, block: Block, stride: int) -> Tensor:
    """Raw output of a scale -> (N, candidates, 5 + classes) in pixels and probabilities."""
    every = torch.tensor([float(part) for part in block["anchors"].split(",")]).view(-1, 2)
    anchors = every[_numbers(block["mask"])]
    batch, _, rows, columns = x.shape
    x = x.view(batch, len(anchors), -1, rows, columns).permute(0, 1, 3, 4, 2)
    grid = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1)
    centre = (x[..., :2].sigmoid() + grid) * stride
    extent = x[..., 2:4].exp() * anchors.view(1, -1, 1, 1, 2)
    return torch.cat([centre, extent, x[..., 4:].sigmoid()], -1).flatten(1, 3)
