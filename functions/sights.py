"""Short requests, many a second: frames of a street clip in words, and the film review that is nearest to a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import cv2
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from dataflower.spec.function import Json, Text, function
from functions import assets
from functions.darknet import Darknet

FRAMES = 60
SENTENCES = 48


@function(batch=True, outputs={"objects": Json()})
class Look:
    """Names of the objects in frames of the packaged clip `bikes`, by number (YOLOv3-tiny)."""

    def setup(self, pixels: int = 128, threshold: float = 0.2) -> None:
        """`pixels` of a side: small, so that a machine without a GPU sees something of what batches save."""
        folder = assets.find(assets.YOLO)
        self.net = Darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights").eval()
        self.names = (folder / "coco.names").read_text().split("\n")
        self.threshold = threshold
        with av.open(str(assets.find_file("bikes", assets.VIDEOS, ".mp4"))) as video:
            frames = [f.to_ndarray(format="rgb24") for f, _ in zip(video.decode(video=0), range(FRAMES), strict=False)]
        small = np.stack([cv2.resize(frame, (pixels, pixels)) for frame in frames])
        self.frames = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255

    @torch.inference_mode()
    def __call__(self, frame: list[int]) -> list[list[str]]:
        found = self.net(self.frames[[number % len(self.frames) for number in frame]])
        scores = found[..., 4:5] * found[..., 5:]
        return [sorted({self.names[c] for c in torch.nonzero(one > self.threshold)[:, 1].tolist()}) for one in scores]


class _Model:
    """all-MiniLM-L6-v2: vectors of length 1, close where meanings are."""

    def __init__(self) -> None:
        logging.disable_progress_bar()
        folder = assets.find(assets.MINILM)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.net = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        tokens = self.tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=64)
        mask = tokens["attention_mask"][..., None]
        means = (self.net(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        found: np.ndarray[Any, np.dtype[np.float32]] = torch.nn.functional.normalize(means).numpy()
        return found


class _Reviews:
    """Sentences of the packaged film reviews, and their vectors."""

    def __init__(self, model: _Model) -> None:
        lines = assets.find_file("films", assets.TEXTS, ".txt").read_text().splitlines()
        self.sentences = [line for line in lines if len(line) > 20][:SENTENCES]
        self.vectors = model.vectors(self.sentences)

    def nearest(self, vectors: np.ndarray[Any, np.dtype[np.float32]]) -> list[str]:
        return [self.sentences[i] for i in np.argmax(vectors @ self.vectors.T, axis=1)]


@function(batch=True, outputs={"out": Text()})
class Tell:
    """What is to be seen, as a sentence, and the review that is nearest to it."""

    def setup(self) -> None:
        self.model = _Model()
        self.reviews = _Reviews(self.model)

    def __call__(self, objects: list[Sequence[str]]) -> list[str]:
        said = [f"There is {', '.join(names)}." if names else "There is nothing." for names in objects]
        found = self.reviews.nearest(self.model.vectors(said))
        return [f"{sentence} ({review})" for sentence, review in zip(said, found, strict=True)]


@function(batch=True, outputs={"vector": Json()})
class Embed:
    """A vector for each text."""

    def setup(self) -> None:
        self.model = _Model()

    def __call__(self, text: list[str]) -> list[list[float]]:
        return [[float(x) for x in vector] for vector in self.model.vectors(text)]


@function(batch=True, outputs={"out": Text()})
class Nearest:
    """The review that is nearest to a vector."""

    def setup(self) -> None:
        self.reviews = _Reviews(_Model())

    def __call__(self, vector: list[list[float]]) -> list[str]:
        return self.reviews.nearest(np.asarray(vector, np.float32))
