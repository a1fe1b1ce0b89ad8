from functions import scene


def record(time_s, *labels, faces=0):
    objects = [{"label": label, "score": 0.9, "box": [0, 0, 9, 9]} for label in labels]
    face = {"score": 0.8, "box": [1, 1, 3, 3]}
    return scene.join({"index": int(time_s), "time_s": time_s}, objects, [[face]] * faces + [[]])


def test_join_flattens_the_faces_of_all_crops():
    assert len(record(0.0, "person", faces=2)["faces"]) == 2
    assert scene.join({"index": 0, "time_s": 0.0}, [], [])["faces"] == []


def test_report_counts_frames_and_most_at_once():
    found = scene.summarise([record(0.0, "car", "car"), record(1.0, "car", "person", faces=1), record(2.0)], "street")
    report = found["report"]
    assert (report["frames"], report["objects"], report["faces"]) == (3, 4, 1)
    assert report["seen"] == {"car": {"frames": 2, "most_at_once": 2}, "person": {"frames": 1, "most_at_once": 1}}
    assert [r["index"] for r in report["records"]] == [0, 1, 2]


def test_prompt_tells_the_video_in_order():
    frames = [record(0.0, "car"), record(1.0, "person", "person", "bus"), record(2.0), record(3.0, "orange", faces=1)]
    prompt = scene.summarise(frames, ask="Tell it.")["prompt"]
    assert prompt.split("\n") == [
        "First: a car.",
        "Then: a bus and 2 people.",
        "Last: an orange.",
        "Faces: in 1 frame.",
        "Tell it.",
    ]


def test_prompt_says_the_same_thing_once():
    prompt = scene.summarise([record(float(i), "car") for i in range(8)])["prompt"]
    assert prompt.startswith("First: a car.\nFaces: none.")


def test_nothing_seen_and_no_frames():
    for frames in ([], [record(0.0)]):
        assert scene.summarise(frames)["prompt"].startswith("Nothing was recognised.\nFaces: none.")
