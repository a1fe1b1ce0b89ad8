"""The five applications on their real weights: batches change nothing, and what they find is there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from functions import people, pose, sights, video, vision

pytestmark = [pytest.mark.models, pytest.mark.slow]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def frames(name: str, count: int, fps: float = 2.0) -> list[np.ndarray]:
    return [np.asarray(item["frame"]) for item in video.decode(name, fps=fps, max_frames=count)]


def test_a_batch_of_frames_finds_what_each_frame_has() -> None:
    several, single = vision.Objects(), vision.Detect()
    several.setup()
    single.setup()
    shown = frames("bikes", 5)
    found = several(shown)
    assert sum(map(len, found)) > 0
    for objects, frame in zip(found, shown, strict=True):
        alone = single.detect(frame)
        assert [o["label"] for o in objects] == [o["label"] for o in alone]
        for a, b in zip(objects, alone, strict=True):
            assert a["box"] == pytest.approx(b["box"], abs=0.2)


def test_faces_have_an_age_and_a_batch_gives_the_same() -> None:
    cut, describe = people.CutFaces(), people.Describe()
    cut.setup()
    describe.setup()
    chips = [item["face"] for frame in frames("carphone", 3) for item in cut(frame)]
    assert len(chips) == 3  # one man
    together = describe(chips)
    alone = [describe([chip])[0] for chip in chips]
    for a, b in zip(together, alone, strict=True):
        assert a["age"] == pytest.approx(b["age"], abs=0.2)
        assert (a["looks"], a["sure"] > 0.5) == ("male", True)
        assert 10 < a["age"] < 60


def test_a_head_has_its_eyes_above_its_mouth_and_a_batch_gives_the_same() -> None:
    estimate = pose.Estimate()
    estimate.setup()
    shown = frames("carphone", 3)
    together = estimate(shown)
    assert [len(heads) for heads in together] == [1, 1, 1]
    for heads, frame in zip(together, shown, strict=True):
        (alone,) = estimate([frame])[0]
        assert heads[0]["box"] == pytest.approx(alone["box"], abs=0.5)
        left, right, nose, mouth_left, mouth_right = heads[0]["marks"]
        assert left[0] < nose[0] < right[0]
        assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])


def test_frames_in_words_and_the_nearest_review_are_the_same_in_batches() -> None:
    look, tell, embed, nearest = sights.Look(), sights.Tell(), sights.Embed(), sights.Nearest()
    for made in (look, tell, embed, nearest):
        made.setup()
    seen = look([30, 42, 54])
    assert seen == [look([number])[0] for number in (30, 42, 54)]
    assert all("car" in names for names in seen)
    told = tell(seen)
    assert told == [tell([names])[0] for names in seen]
    texts = ["The plot is thin, but the actors are good.", nearest.reviews.sentences[7]]
    found = nearest(embed(texts))
    assert found == [nearest(embed([text]))[0] for text in texts]
    assert found[1] == texts[1], "a sentence is nearest to itself"
