"""Torch tensors as values, each case in a process that has torch or has not."""

import subprocess
import sys

_TORCH = """
import os, warnings
warnings.simplefilter("error")
import numpy as np, torch
from dataflower.channel.arena import Arena
from dataflower.channel.tensor import decode, encode
from dataflower.channel.torches import to_torch
from dataflower.channel.views import Views
from dataflower.errors import InvalidArgument
views = Views()
arena = Arena(1, cap_bytes=4 << 20, announce=lambda number, nbytes, fd: views.attach(number, nbytes, os.dup(fd)))
for shape in ((3, 4), (100, 101)):
    for dtype in (torch.float32, torch.int64, torch.bool, torch.float16, torch.uint8, torch.bfloat16):
        tensor = (torch.arange(shape[0] * shape[1]).reshape(shape) % 7).to(dtype)
        for case in (tensor, tensor.t(), tensor[::2], torch.nn.Parameter(tensor.float())):
            sent = encode({"x": case}, arena=arena, views=views)
            back = decode(sent, views)["x"]
            if case.dtype == torch.bfloat16:
                assert isinstance(back, torch.Tensor), type(back)
            else:
                back = to_torch(back)
            assert back.dtype == case.dtype and torch.equal(back, case.detach()), (shape, dtype)
            again = encode(back, arena=arena, views=views)
            assert again.tensors == sent.tensors
            arena.release([(r.arena, r.slot) for r in sent.tensors])
            del back
assert views.statistics().held == 0 and arena.statistics().used_bytes == 0
for bad in (torch.zeros(2, dtype=torch.complex64), torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")):
    try:
        encode([bad], arena=arena, views=views)
    except InvalidArgument as error:
        assert str(error).startswith("out[0]: cannot send "), error
    else:
        raise AssertionError(bad)
print("fine")
"""


def test_torch_tensors() -> None:
    done = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_torch_is_not_imported_by_sending() -> None:
    code = (
        "import sys, numpy; from dataflower.channel.tensor import encode; encode(numpy.ones(3), arena=None, views=None)"
    )
    code += "; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
