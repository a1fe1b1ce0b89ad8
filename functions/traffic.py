"""A street: people and vehicles, each looked at by a branch of its own, and counts of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataflower.spec.function import Json, function

Facts = Mapping[str, Any]

HUES = ((10, "red"), (25, "orange"), (35, "yellow"), (85, "green"), (130, "blue"), (170, "purple"), (181, "red"))
"""Upper end of each hue, in OpenCV's half degrees."""


@function(outputs={"vehicle": Json()})
def paint(crop: NDArray[np.uint8], where: Facts) -> Facts:
    """A vehicle and the colour that most of its middle has (no weights: hue, and grey where there is hardly any)."""
    height, width = crop.shape[:2]
    middle = crop[height // 4 : max(3 * height // 4, 1), width // 5 : max(4 * width // 5, 1)]
    hue, saturation, value = cv2.split(cv2.cvtColor(np.ascontiguousarray(middle), cv2.COLOR_RGB2HSV))
    vivid = (saturation > 70) & (value > 50)
    if vivid.mean() > 0.3:
        most = int(np.bincount(hue[vivid].ravel(), minlength=181).argmax())
        colour = next(name for end, name in HUES if most < end)
    else:
        bright = float(np.median(value))
        colour = "black" if bright < 60 else "grey" if bright < 150 else "white"
    return {**where, "colour": colour}


@function(outputs={"record": Json()})
def scene(at: Facts, faces: Sequence[Sequence[Facts]], vehicles: Sequence[Facts], people: Sequence[Facts]) -> Facts:
    """One record for each frame: people, how many of them show their face, vehicles with their colours."""
    return {**at, "people": len(people), "faces": sum(1 for found in faces if found), "vehicles": list(vehicles)}


@function(outputs={"report": Json()})
def count(records: Sequence[Facts]) -> Facts:
    """Over the whole video: the most at once, vehicles by kind and by colour (in frames, not one by one)."""
    vehicles = [vehicle for record in records for vehicle in record["vehicles"]]
    return {
        "frames": len(records),
        "most_people": max((record["people"] for record in records), default=0),
        "most_vehicles": max((len(record["vehicles"]) for record in records), default=0),
        "faces": sum(record["faces"] for record in records),
        "kinds": dict(Counter(vehicle["label"] for vehicle in vehicles).most_common()),
        "colours": dict(Counter(vehicle["colour"] for vehicle in vehicles).most_common()),
        "records": list(records),
    }
