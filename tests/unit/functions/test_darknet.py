import numpy as np
import pytest
import torch

from functions.darknet import Darknet, read_cfg
from functions.vision import letterbox

CFG = """
[net]
channels=3   # ignored: width
[convolutional]
batch_normalize=1
filters=2
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=1
[convolutional]
filters=7
size=1
stride=1
pad=1
activation=linear
[yolo]
mask = 1
anchors = 10,14, 23,27
classes=2
"""
COUNT = 4 * 2 + 2 * 3 * 9 + 7 + 7 * 2


@pytest.fixture
def build(tmp_path):
    def make(count=COUNT):
        (tmp_path / "a.cfg").write_text(CFG)
        values = np.random.default_rng(0).uniform(0.1, 1, count).astype(np.float32)
        (tmp_path / "a.weights").write_bytes(bytes(20) + values.tobytes())
        return Darknet(tmp_path / "a.cfg", tmp_path / "a.weights").eval(), values

    return make


def test_read_cfg_keeps_order_and_drops_comments():
    assert [block["type"] for block in read_cfg(CFG)] == ["net", "convolutional", "maxpool", "convolutional", "yolo"]
    assert read_cfg(CFG)[0]["channels"] == "3"


def test_folded_network_equals_one_with_batch_normalisation(build):
    net, values = build()
    v = torch.from_numpy(values)
    bias, gain, mean, variance = v[0:2], v[2:4], v[4:6], v[6:8]
    x = torch.rand(1, 3, 32, 64)
    y = torch.conv2d(x, v[8:62].view(2, 3, 3, 3), None, 2, 1)
    y = torch.nn.functional.batch_norm(y, mean, variance, gain, bias, eps=1e-5)
    y = torch.nn.functional.leaky_relu(y, 0.1)
    y = torch.nn.functional.max_pool2d(torch.nn.functional.pad(y, (0, 1, 0, 1), value=-1e9), 2, 1)
    y = torch.conv2d(y, v[69:].view(7, 2, 1, 1), v[62:69])[0, :, 5, 9]
    with torch.inference_mode():
        got = net(x).view(1, 16, 32, 7)[0, 5, 9]
    want = [(y[0].sigmoid() + 9) * 2, (y[1].sigmoid() + 5) * 2, y[2].exp() * 23, y[3].exp() * 27, *y[4:].sigmoid()]
    torch.testing.assert_close(got, torch.stack([torch.as_tensor(value) for value in want]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "message"), [(COUNT - 1, "end before"), (COUNT + 1, "1 weights are left")])
def test_weights_that_do_not_fit(build, count, message):
    with pytest.raises(ValueError, match=message):
        build(count)


@pytest.mark.parametrize(("height", "width"), [(272, 640), (640, 272), (100, 100), (3, 900)])
def test_letterbox_pads_to_the_stride_and_maps_back(height, width):
    frame = np.full((height, width, 3), 200, np.uint8)
    frame.flags.writeable = False
    picture, scale, left, top = letterbox(frame, 416)
    assert max(picture.shape[:2]) == 416
    assert picture.shape[0] % 32 == picture.shape[1] % 32 == 0
    inside = picture[top : top + max(round(height * scale), 1), left : left + max(round(width * scale), 1)]
    assert (inside == 200).all()
    assert (picture == 200).sum() == inside.size
