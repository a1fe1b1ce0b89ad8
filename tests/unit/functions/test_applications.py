"""The parts of the five applications that need no weights."""

from __future__ import annotations

import numpy as np
import pytest

from functions import action, people, pose, traffic, vision


def test_a_chip_is_the_middle_of_the_box_whatever_the_frame_ends() -> None:
    frame = np.zeros((100, 120, 3), np.uint8)
    frame[30:70, 40:80] = 200
    whole = people.chip(frame, np.array([40.0, 30.0, 80.0, 70.0]), 64)
    assert whole.shape == (64, 64, 3)
    assert whole[32, 32].tolist() == [200, 200, 200]
    assert whole[2, 2].max() == 0  # the margin
    assert people.chip(frame, np.array([-20.0, -20.0, 20.0, 20.0]), 32).shape == (32, 32, 3)


def test_each_face_gets_its_own_person() -> None:
    record = people.together({"index": 3}, [{"box": [0, 0, 1, 1]}, {"box": [2, 2, 3, 3]}], [{"age": 7}, {"age": 70}])
    assert [(f["box"][0], f["age"]) for f in record["faces"]] == [(0, 7), (2, 70)]
    with pytest.raises(ValueError, match="shorter"):
        people.together({}, [{}, {}], [{}])


def test_a_census_of_nobody_is_one_too() -> None:
    assert people.census([])["age"] is None
    records = [{"faces": [{"age": 20.0, "looks": "male"}]}, {"faces": []}]
    found = people.census(records)
    assert (found["frames"], found["with_faces"], found["age"], found["looks"]) == (2, 1, 20.0, {"male": 1})


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((200, 20, 20), "red"),
        ((20, 20, 200), "blue"),
        ((20, 160, 30), "green"),
        ((20, 20, 20), "black"),
        ((230, 230, 230), "white"),
        ((110, 110, 112), "grey"),
        ((220, 210, 30), "yellow"),
    ],
)
def test_paint_names_the_colour_of_the_middle(rgb: tuple[int, int, int], name: str) -> None:
    crop = np.zeros((40, 80, 3), np.uint8)
    crop[10:30, 16:64] = rgb
    assert traffic.paint(crop, {"label": "car"}) == {"label": "car", "colour": name}


def test_a_scene_counts_both_branches() -> None:
    vehicles = [{"label": "car", "colour": "red"}, {"label": "bus", "colour": "red"}]
    record = traffic.scene({"index": 0}, [[{"score": 1}], []], vehicles, [{}, {}])
    assert (record["people"], record["faces"], len(record["vehicles"])) == (2, 1, 2)
    report = traffic.count([record, traffic.scene({"index": 1}, [], [], [])])
    assert (report["most_people"], report["kinds"], report["colours"]) == (2, {"car": 1, "bus": 1}, {"red": 2})


def test_crops_are_those_of_the_labels_and_large_enough() -> None:
    frame = np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)
    objects = [
        {"label": "person", "box": [10.0, 5.0, 50.0, 45.0]},
        {"label": "person", "box": [0.0, 0.0, 10.0, 40.0]},
        {"label": "car", "box": [0.0, 0.0, 60.0, 60.0]},
    ]
    (found,) = vision.crops(frame, objects)
    assert found["where"] == objects[0]
    assert np.array_equal(found["crop"], frame[5:45, 10:50])


def head(nose: tuple[float, float], box: tuple[float, ...] = (0, 0, 40, 40)) -> dict[str, object]:
    return {"box": list(box), "marks": [[10, 10], [30, 10], list(nose), [12, 30], [28, 30]]}


def test_a_nose_beside_the_middle_is_a_turned_head() -> None:
    straight, right, down = pose.recognise([head((20, 20)), head((26, 20)), head((20, 26))])
    assert straight == {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}
    assert right["yaw"] == pytest.approx(36.9, abs=0.1)
    assert down["pitch"] == pytest.approx(36.9, abs=0.1)
    assert pose.recognise([]) == []


def test_heads_are_linked_by_where_they_are() -> None:
    near, far = (0, 0, 40, 40), (100, 0, 140, 40)
    frames = [[head((20, 20), near), head((30, 20), far)], [head((30, 20), far)], [head((20, 20), near)], []]
    turns = [pose.recognise(frame) for frame in frames]
    places = [pose.place(frame, {"index": i}) for i, frame in enumerate(frames)]
    report = pose.judge(turns, places)
    assert (report["frames"], report["heads"]) == (4, 4)
    assert [(p["frames"], p["facing"]) for p in report["people"]] == [(2, 1.0), (2, 0.0)]


def test_flow_sees_which_way_the_picture_moves() -> None:
    rng = np.random.default_rng(1)
    wide = np.repeat(np.repeat(rng.integers(0, 255, (60, 100, 3), dtype=np.uint8), 4, 0), 4, 1)
    frames = [wide[:, shift : shift + 320] for shift in (0, 8, 16)]
    first, *others = action.flow(iter(frames))
    assert first == {"camera": [0.0, 0.0], "amount": 0.0}
    assert all(found["camera"][0] == pytest.approx(-8 / 320, abs=0.006) for found in others)


def test_tubes_follow_a_box_and_take_the_camera_off() -> None:
    frames = [
        {"index": i, "time_s": i / 2, "boxes": [[10 + 20 * i, 0, 50 + 20 * i, 100], [200, 0, 240, 100]]}
        for i in range(4)
    ]
    still = [{"camera": [0.0, 0.0], "amount": 0.1}] * 4
    walker, stander = action.tubes(frames, still, width=400.0)
    assert walker["steps"] == pytest.approx([0.4] * 3)  # 20 pixels in half a second, 100 pixels high
    assert [action.act(tube)["action"] for tube in (walker, stander)] == ["walks", "stands"]
    panned = [{"camera": [0.05, 0.0], "amount": 0.1}] * 4
    walker, stander = action.tubes(frames, panned, width=400.0)
    assert [action.act(tube)["action"] for tube in (walker, stander)] == ["stands", "walks"]
    report = action.tell([action.act(walker), action.act(stander)], still)
    assert (report["people"], report["actions"]) == (2, {"stands": 1, "walks": 1})
    assert action.tell([], [])["movement"] == 0.0
