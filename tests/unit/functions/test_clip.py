import av
import numpy as np
import pytest
from PIL import Image

from functions import assets, video


def pictures(count):
    for i in range(count):
        picture = np.full((48, 64, 3), 40 * i, np.uint8)
        picture.flags.writeable = False
        yield picture


def test_clip_and_sheet_can_be_read_again(tmp_path):
    written = video.write(pictures(5), str(tmp_path / "new" / "folder"), "five", fps=2.5, columns=2)
    with av.open(written["clip"]) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        assert clip.streams.video[0].average_rate == 2.5
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    np.testing.assert_allclose([frame.mean() for frame in frames], [0, 40, 80, 120, 160], atol=4)
    with Image.open(written["sheet"]) as sheet:
        assert sheet.size == (640, 720)


def test_no_picture_no_file(tmp_path):
    assert video.write(iter(()), str(tmp_path)) == {}
    assert list(tmp_path.iterdir()) == []


def test_decode_takes_frames_evenly_and_scales(tmp_path):
    path = video.write(pictures(6), str(tmp_path), fps=6)["clip"]
    taken = list(video.decode(path, fps=3, width=32))
    assert [item["at"]["index"] for item in taken] == [0, 1, 2]
    np.testing.assert_allclose([item["at"]["time_s"] for item in taken], [0, 1 / 3, 2 / 3], atol=0.01)
    assert {item["frame"].shape for item in taken} == {(24, 32, 3)}
    assert len(list(video.decode(path, fps=6, max_frames=2))) == 2


def test_annotate_draws_and_leaves_the_frame_alone():
    frame = next(pictures(1))
    found = {"label": "person", "score": 0.9, "box": [10.0, 10.0, 50.0, 40.0]}
    face = {"score": 0.9, "box": [20.0, 20.0, 30.0, 30.0]}
    picture = video.annotate(frame, {"time_s": 0.0, "objects": [found], "faces": [face]})
    assert picture.shape == frame.shape
    assert tuple(picture[25, 20]) == video.FACE_COLOUR
    assert picture[25, 10].any()
    assert not picture[30, 40].any()
    assert not frame.any()


def test_unknown_video_names_the_packaged_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAFLOWER_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make models"):
        next(video.decode("bikes"))
    (tmp_path / assets.VIDEOS).mkdir()
    (tmp_path / assets.VIDEOS / "bikes.mp4").touch()
    with pytest.raises(FileNotFoundError, match="packaged: bikes"):
        next(video.decode("cars"))
