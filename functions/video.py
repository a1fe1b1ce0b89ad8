"""Video in and out with PyAV: decode to frames, draw what was seen, write a clip. Never holds a whole video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dataflower.spec.function import Json, Stream, Tensor, function
from functions import assets

Facts = Mapping[str, Any]

COLOURS = ((230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (0, 128, 128))
FACE_COLOUR = (255, 225, 25)


@function(outputs={"frame": Stream(Tensor("UINT8", ["H", "W", 3])), "at": Stream(Json())})
def decode(video: str, fps: float = 2.0, max_frames: int = 0, width: int = 0) -> Iterator[Facts]:
    """Frames of a video as RGB, `fps` of them for each second of it, at most `max_frames` (0: all of them).

    `video`: a file, or the name of a packaged one. `width`: scale to this many pixels (0: as it is).
    `at` says which frame it is: `{"index", "time_s"}`.
    """
    count = 0
    with av.open(str(assets.find_file(video, assets.VIDEOS, ".mp4"))) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # the stage has its own core; decoder threads would take the others'
        for picture in container.decode(stream):
            if picture.time is None or picture.time + 1e-6 < count / fps:
                continue
            size = (width, round(picture.height * width / picture.width)) if width else (picture.width, picture.height)
            frame = picture.to_ndarray(format="rgb24", width=size[0], height=size[1])
            yield {"frame": frame, "at": {"index": count, "time_s": round(picture.time, 3)}}
            count += 1
            if count == max_frames:
                return


@function(outputs={"picture": Tensor("UINT8", ["H", "W", 3])})
def annotate(frame: NDArray[np.uint8], record: Facts) -> NDArray[np.uint8]:
    """The frame with a labelled box round each object and a yellow one round each face."""
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    for found in record["objects"]:
        colour = COLOURS[sum(map(ord, found["label"])) % len(COLOURS)]
        _box(draw, found["box"], f"{found['label']} {found['score']:.0%}", colour)
    for face in record["faces"]:
        _box(draw, face["box"], "", FACE_COLOUR)
    draw.text((4, frame.shape[0] - 14), f"{record['time_s']:.1f} s", fill="white", stroke_width=1, stroke_fill="black")
    return np.array(image)


def _box(draw: ImageDraw.ImageDraw, box: Sequence[float], text: str, colour: tuple[int, int, int]) -> None:
    draw.rectangle(tuple(box), outline=colour, width=2)
    if text:
        corner = (box[0] + 2, max(box[1] - 12, 0))
        draw.rectangle(draw.textbbox(corner, text), fill=colour)
        draw.text(corner, text, fill="white")


@function(outputs={"clip": Json(), "sheet": Json()})
def write(
    pictures: Stream[NDArray[np.uint8]], folder: str = "out", name: str = "seen", fps: float = 2.0, columns: int = 4
) -> Facts:
    """Write the pictures as they come to `folder/name.mp4`, and small ones side by side to `folder/name.png`.

    Both paths are absent if there was no picture.
    """
    target = Path(folder).resolve()
    target.mkdir(parents=True, exist_ok=True)
    small: list[Image.Image] = []
    clip: av.container.OutputContainer | None = None
    for picture in pictures:
        if clip is None:
            clip, stream = _open_clip(target / f"{name}.mp4", picture.shape, fps)
        for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")):
            clip.mux(packet)
        small.append(Image.fromarray(picture).resize((320, 320 * picture.shape[0] // picture.shape[1])))
    if clip is None:
        return {}
    for packet in stream.encode(None):
        clip.mux(packet)
    clip.close()
    _sheet(small, columns).save(target / f"{name}.png")
    return {"clip": str(target / f"{name}.mp4"), "sheet": str(target / f"{name}.png")}


def _open_clip(path: Path, shape: Sequence[int], fps: float) -> tuple[av.container.OutputContainer, av.VideoStream]:
    clip = av.open(str(path), "w")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    stream = clip.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
    stream.width, stream.height = shape[1] // 2 * 2, shape[0] // 2 * 2  # the codec wants even sizes
    stream.pix_fmt = "yuv420p"
    stream.bit_rate = 4_000_000
    stream.codec_context.thread_count = 1
    return clip, stream


def _sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * min(columns, len(pictures)), height * -(-len(pictures) // columns)))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
