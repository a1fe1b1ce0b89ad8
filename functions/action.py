"""What people do in a video: boxes linked to tracks, movement along them, and a word for it (rules, no weights)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataflower.spec.function import Json, Stream, function
from functions.boxes import iou

Facts = Mapping[str, Any]

FLOW_WIDTH = 160
"""Pixels in a row of the pictures that movement is looked for in."""


@function(outputs={"flow": Stream(Json())})
def flow(frames: Stream[NDArray[np.uint8]]) -> Iterator[Facts]:
    """How the picture moves from each frame to the next: the camera's part, and how much there is on the whole.

    Dense optical flow (Farneback), in widths of the picture for each frame; the first frame has none.
    """
    cv2.setNumThreads(1)
    before: NDArray[np.uint8] | None = None
    for frame in frames:
        height = max(16, round(frame.shape[0] * FLOW_WIDTH / frame.shape[1]))
        grey = cv2.cvtColor(cv2.resize(np.asarray(frame), (FLOW_WIDTH, height)), cv2.COLOR_RGB2GRAY)
        camera, amount = np.zeros(2), 0.0
        if before is not None:
            moved = cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0) / FLOW_WIDTH
            camera = np.median(moved.reshape(-1, 2), 0)
            amount = float(np.linalg.norm(moved - camera, axis=2).mean())
        before = np.asarray(grey, np.uint8)
        yield {"camera": [round(float(v), 5) for v in camera], "amount": round(amount, 5)}


@function(outputs={"boxes": Json()})
def people(objects: Sequence[Facts], at: Facts) -> Facts:
    """The people of a frame, for linking."""
    return {**at, "boxes": [found["box"] for found in objects if found["label"] == "person"]}


@function(outputs={"tube": Stream(Json())})
def tubes(frames: Sequence[Facts], flows: Sequence[Facts], width: float = 640.0) -> Iterator[Facts]:
    """Boxes linked from frame to frame by their overlap; one tube for each person that is seen twice or more.

    `steps`: movement of the middle of the box in its own heights for each second, the camera's movement taken off.
    """
    tracks: list[dict[str, Any]] = []
    for number, (frame, moved) in enumerate(zip(frames, flows, strict=True)):
        free = [track for track in tracks if number - track["seen"] <= 2]
        for box in frame["boxes"]:
            here = np.array(box)
            close = [(float(iou(here, np.array([t["box"]]))[0]), i) for i, t in enumerate(free)]
            best, i = max(close, default=(0.0, -1))
            if best < 0.15:
                tracks.append(
                    {"seen": number, "box": box, "time": frame["time_s"], "from": frame["index"], "steps": []}
                )
                continue
            track = free.pop(i)
            then = np.array(track["box"])
            shift = (here[:2] + here[2:] - then[:2] - then[2:]) / 2 - np.array(moved["camera"]) * width
            seconds = max(frame["time_s"] - track["time"], 1e-3)
            track["steps"].append(round(float(np.linalg.norm(shift) / max(here[3] - here[1], 1) / seconds), 4))
            track.update(seen=number, box=box, time=frame["time_s"])
    for track in tracks:
        if track["steps"]:
            yield {"from": track["from"], "frames": len(track["steps"]) + 1, "steps": track["steps"]}


@function(outputs={"action": Json()})
def act(tube: Facts, walks: float = 0.15, runs: float = 1.2) -> Facts:
    """A word for a tube, by its median speed in heights a second: a person walks at about 0.8 of them."""
    speed = float(np.median(tube["steps"]))
    word = "stands" if speed < walks else "walks" if speed < runs else "runs or rides"
    return {"from": tube["from"], "frames": tube["frames"], "speed": round(speed, 3), "action": word}


@function(outputs={"report": Json()})
def tell(actions: Sequence[Facts], flows: Sequence[Facts]) -> Facts:
    """What was seen, by action, and how lively the picture was."""
    lively = float(np.mean([moved["amount"] for moved in flows])) if flows else 0.0
    counts = Counter(found["action"] for found in actions)
    return {
        "people": len(actions),
        "actions": dict(counts.most_common()),
        "movement": round(lively, 4),
        "tubes": list(actions),
    }
