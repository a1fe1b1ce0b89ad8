"""Weights in oneDNN's layout as plain bytes, and such bytes as weights again, wherever they lie: nothing is copied.

torch can say where the bytes of a laid-out tensor are and what their layout is; a tensor over bytes that others own is
made by the C interface that its compiled models use (`aoti_torch_create_tensor_from_blob_v2`). A layout belongs to a
kind of processor and a version of torch: `kind` names them.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from dataflower.llm.errors import UnsupportedModel

_DTYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def why_not() -> str:
    """Why this torch can't do it; "" if it can."""
    if not torch._C._has_mkldnn:
        return "this torch has no oneDNN"
    missing = [name for name in ("data_ptr", "_nbytes", "_get_mkldnn_serialized_md") if _operator(name) is None]
    if missing or not hasattr(getattr(torch._C, "_aoti", None), "alloc_tensor_by_stealing_from_void_ptr"):
        return f"torch {torch.__version__} does not hand out weights in oneDNN's layout"
    try:
        _library()
    except (OSError, AttributeError) as error:
        return f"torch {torch.__version__} does not take in weights in oneDNN's layout: {error}"
    return ""


def take_apart(laid: torch.Tensor) -> tuple[torch.Tensor, bytes]:
    """The bytes of a laid-out weight, as a view (uint8) that is good as long as the weight is, and their layout."""
    nbytes = int(torch.ops.mkldnn._nbytes(laid))
    array = (ctypes.c_char * nbytes).from_address(torch.ops.mkldnn.data_ptr(laid))
    layout = torch.ops.mkldnn._get_mkldnn_serialized_md(laid)
    return torch.frombuffer(array, dtype=torch.uint8), bytes(layout.tolist())


def put_together(data: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype, layout: bytes) -> torch.Tensor:
    """A laid-out weight over the bytes of `data` (uint8), which the caller keeps as long as the weight.

    Raises:
        UnsupportedModel: torch refuses them.
    """
    library = _library()
    sizes, strides = (ctypes.c_int64 * 2)(*shape), (ctypes.c_int64 * 2)(shape[1], 1)
    handle = ctypes.c_void_p()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        data.data_ptr(),
        2,
        sizes,
        strides,
        0,
        getattr(library, f"aoti_torch_dtype_{_DTYPES[dtype]}")(),
        library.aoti_torch_device_type_cpu(),
        0,
        ctypes.byref(handle),
        library.aoti_torch_layout__mkldnn(),
        layout,
        len(layout),
    )
    if failed or not handle.value:
        raise UnsupportedModel("torch refuses weights in this layout: they were made by another version of it")
    capsule = ctypes.pythonapi.PyCapsule_New(handle.value, None, None)
    tensor: torch.Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule)
    if int(torch.ops.mkldnn._nbytes(tensor)) != data.numel():
        raise UnsupportedModel("weights in oneDNN's layout have another size than their layout says")
    return tensor


def _operator(name: str) -> object:
    return getattr(torch.ops.mkldnn, name, None)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    create = library.aoti_torch_create_tensor_from_blob_v2
    create.restype = ctypes.c_int32
    create.argtypes = (
        pointer, number, ctypes.POINTER(number), ctypes.POINTER(number), number,
        ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(pointer),
        ctypes.c_int32, ctypes.c_char_p, number,
    )  # fmt: skip
    for name in ("layout__mkldnn", "device_type_cpu", *(f"dtype_{name}" for name in _DTYPES.values())):
        getattr(library, f"aoti_torch_{name}").restype = ctypes.c_int32
    ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
    ctypes.pythonapi.PyCapsule_New.argtypes = (pointer, ctypes.c_char_p, pointer)
    return library
