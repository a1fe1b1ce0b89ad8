"""Applications whose plans are tried on this machine: two with real weights, and two that only sleep (for `--quick`).

All take batches, so that a plan has something to decide. The functions are below their workflows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataflower import Json, Text, function

MAX_BATCH = 8
PICTURE = 96
"""Pixels of a side: small, so that a machine without a GPU sees something of what batches save."""


@dataclass(frozen=True, slots=True)
class Promised:
    """A workflow, and sets of inputs that are typical of it."""

    name: str
    source: str
    inputs: tuple[Mapping[str, Any], ...]
    slo_ms: float

    def within(self, slo_ms: float) -> Promised:
        """The same with another promise."""
        source = self.source.replace(f"e2e_ms: {self.slo_ms:g},", f"e2e_ms: {slo_ms:g},")
        return replace(self, source=source, slo_ms=slo_ms)


def _workflow(name: str, slo_ms: float, inputs: str, first: str, second: str, *, preload: str = "") -> str:
    """Two stages, the first the heavy one; a container each, which is what this machine has room for."""
    scaling = "scaling: {min_replicas: 1, max_replicas: 1}"
    modules = f", preload: [{preload}]" if preload else ""
    return f"""
apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: {name}}}
slo: {{e2e_ms: {slo_ms:g}, percentile: 99}}
inputs: {inputs}
stages:
  {first}, batch: {{max_size: {MAX_BATCH}}}, {scaling}{modules}}}
  {second}, batch: {{max_size: {MAX_BATCH}}}, {scaling}}}
outputs: {{answer: answer.out}}
"""


def real(slo_ms: float = 600.0) -> tuple[Promised, Promised]:
    """Frames of a street clip in words, and the line of the packaged reviews nearest to that (YOLOv3-tiny, MiniLM); the
    same line for a text (MiniLM)."""
    look = "look: {function: 'bench.promised:Look', inputs: {frame: inputs.frame}"
    tell = "answer: {function: 'bench.promised:Tell', inputs: {objects: look.objects}"
    embed = "embed: {function: 'bench.promised:Embed', inputs: {text: inputs.text}"
    match = "answer: {function: 'bench.promised:Nearest', inputs: {vector: embed.vector}"
    texts = ("A man is eating food.", "The plot is thin, but the actors are good.", "The phone broke after a week.")
    return (
        Promised(
            "sights",
            _workflow("sights", slo_ms, "{frame: int}", look, tell, preload="torch"),
            tuple({"frame": i} for i in range(0, 60, 7)),
            slo_ms,
        ),
        Promised(
            "search",
            _workflow("search", slo_ms, "{text: string}", embed, match, preload="torch"),
            tuple({"text": text} for text in texts),
            slo_ms,
        ),
    )


def sleeping(slo_ms: float = 400.0) -> tuple[Promised, Promised]:
    """The same shape without weights: a batch takes 20 ms and 5 more for each task."""
    found = []
    for name in ("naps", "dozes"):
        first = "nap: {function: 'bench.promised:nap', inputs: {x: inputs.x}, params: {once: 0.02, each: 0.005}"
        second = "answer: {function: 'bench.promised:nap', inputs: {x: nap.out}, params: {once: 0.004, each: 0.001}"
        found.append(Promised(name, _workflow(name, slo_ms, "{x: int}", first, second), ({"x": 1}, {"x": 2}), slo_ms))
    return found[0], found[1]


@function(batch=True)
def nap(x: list[int], once: float, each: float) -> list[int]:
    """Sleep as long as a batch takes."""
    time.sleep(once + each * len(x))
    return x


@function(batch=True, outputs={"objects": Json()})
class Look:
    """Objects in the frames of the packaged clip `bikes`, by number."""

    def setup(self) -> None:
        import av
        import cv2
        import numpy as np
        import torch

        from functions import assets
        from functions.darknet import Darknet

        folder = assets.find(assets.YOLO)
        self.net = Darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights").eval()
        self.names = (folder / "coco.names").read_text().split("\n")
        clip = next(assets.find(assets.VIDEOS).glob("bikes.*"))
        with av.open(str(clip)) as video:
            frames = [
                frame.to_ndarray(format="rgb24") for frame, _ in zip(video.decode(video=0), range(60), strict=False)
            ]
        small = np.stack([cv2.resize(frame, (PICTURE, PICTURE)) for frame in frames])
        self.frames = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255

    def __call__(self, frame: list[int]) -> list[list[str]]:
        import torch

        with torch.inference_mode():
            found = self.net(self.frames[[number % len(self.frames) for number in frame]])
            scores = found[..., 4:5] * found[..., 5:]
        return [sorted({self.names[c] for c in torch.nonzero(one > 0.3)[:, 1].tolist()}) for one in scores]


def _model() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from functions import assets

    logging.disable_progress_bar()
    folder = assets.find(assets.MINILM)
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def _vectors(tokenizer: Any, net: Any, texts: Sequence[str]) -> Any:
    import torch

    tokens = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=64)
    with torch.inference_mode():
        states = net(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()


@function(batch=True, outputs={"vector": Json()})
class Embed:
    """A vector for each text."""

    def setup(self) -> None:
        self.tokenizer, self.net = _model()

    def __call__(self, text: list[str]) -> list[list[float]]:
        return [[float(x) for x in vector] for vector in _vectors(self.tokenizer, self.net, text)]


@function(batch=True, outputs={"out": Text()})
class Nearest:
    """The sentence of the packaged reviews that is nearest to a vector."""

    def setup(self) -> None:
        from functions import assets

        lines = next(assets.find(assets.TEXTS).glob("films*")).read_text().splitlines()
        self.sentences = [line for line in lines if len(line) > 20][:48]
        self.model = _model()
        self.vectors = _vectors(*self.model, self.sentences)

    def __call__(self, vector: list[list[float]]) -> list[str]:
        import numpy as np

        best = np.argmax(np.array(vector) @ self.vectors.T, axis=1)
        return [self.sentences[i] for i in best]


@function(batch=True, outputs={"out": Text()})
class Tell:
    """What is to be seen, as a sentence, and the review that is nearest to it."""

    def setup(self) -> None:
        self.nearest = Nearest()
        self.nearest.setup()

    def __call__(self, objects: list[Sequence[str]]) -> list[str]:
        said = [f"There is {', '.join(names)}." if names else "There is nothing." for names in objects]
        found = self.nearest(_vectors(*self.nearest.model, said).tolist())
        return [f"{sentence} ({review})" for sentence, review in zip(said, found, strict=True)]
