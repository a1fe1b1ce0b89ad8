"""From what the networks found to words: a record for each frame, a report of the video, a prompt for the writer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dataflower.spec.function import Json, Text, function

Facts = Mapping[str, Any]


@function(outputs={"record": Json()})
def join(at: Facts, objects: Sequence[Facts], faces: Sequence[Sequence[Facts]] = ()) -> Facts:
    """Everything about one frame. `faces`: one list for each crop that was looked at, if any was."""
    return {**at, "objects": list(objects), "faces": [face for crop in faces for face in crop]}


@function(outputs={"report": Json(), "prompt": Text()})
def summarise(records: Sequence[Facts], video: str = "", ask: str = "", scenes: int = 4) -> Facts:
    """Counts over the whole video, and notes on it, `scenes` lines long, that end with what to `ask` a language model.

    `seen`: label -> in how many frames, and the most at once.
    """
    counts = [Counter(found["label"] for found in record["objects"]) for record in records]
    report = {
        "video": video,
        "frames": len(records),
        "objects": sum(sum(count.values()) for count in counts),
        "faces": sum(len(record["faces"]) for record in records),
        "seen": {
            label: {"frames": frames, "most_at_once": max(count[label] for count in counts)}
            for label, frames in _frequent(Counter(label for count in counts for label in count))
        },
        "records": list(records),
    }
    parts = [_told(counts[i * len(counts) // scenes : (i + 1) * len(counts) // scenes]) for i in range(scenes)]
    told = [part for i, part in enumerate(parts) if part and (i == 0 or part != parts[i - 1])]
    heads = ["First", *["Then"] * (len(told) - 2), "Last"] if len(told) > 1 else ["First"]
    lines = [f"{head}: {part}." for head, part in zip(heads, told, strict=False)] or ["Nothing was recognised."]
    with_faces = sum(1 for record in records if record["faces"])
    lines.append(f"Faces: {f'in {with_faces} frame' + 's' * (with_faces > 1) if with_faces else 'none'}.")
    return {"report": report, "prompt": "\n".join([*lines, ask])}


def _told(counts: Sequence[Mapping[str, int]], labels: int = 3) -> str:
    """What a piece of the video shows: the labels that most frames show, with the most of each at once."""
    frames = Counter(label for count in counts for label in count)
    words = [_words(label, max(count[label] for count in counts)) for label, _ in _frequent(frames)[:labels]]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _frequent(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _words(label: str, n: int) -> str:
    if n == 1:
        return f"an {label}" if label[0] in "aeiou" else f"a {label}"
    return f"{n} {PLURAL.get(label, label + 's')}"


PLURAL = {
    "person": "people",
    "bus": "buses",
    "bench": "benches",
    "sheep": "sheep",
    "skis": "skis",
    "knife": "knives",
    "wine glass": "wine glasses",
    "sandwich": "sandwiches",
    "toothbrush": "toothbrushes",
    "mouse": "mice",
    "scissors": "scissors",
}
"""COCO's labels whose plural is not label + s."""
