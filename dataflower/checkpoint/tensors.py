"""The edge to torch: bytes of weights as tensors, and as parameters of a model, without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dataflower.checkpoint.format import Header
from dataflower.errors import InvalidArgument, WeightsInvalid

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}


def views(header: Header, data: memoryview | torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors over `data`, the whole file that `header` describes. They keep its memory; nothing is copied.

    `data`: the bytes, in this process's memory or (a uint8 tensor) on whatever device.

    The one exception: a tensor that begins at an address its type can't have (a file whose writer did not align
    anything) is copied; `checkpoint.repack` makes an aligned file of it.
    """
    import torch

    if not header.tensors:
        return {}
    base = data if isinstance(data, torch.Tensor) else torch.frombuffer(data, dtype=torch.uint8)
    found = {}
    for spec in header.tensors:
        name = _DTYPES[spec.dtype]
        dtype = getattr(torch, name, None)
        if dtype is None:
            raise WeightsInvalid(f"tensor {spec.name!r}: this torch has no {name}")
        part = base[spec.offset : spec.offset + spec.nbytes]
        if spec.offset % dtype.itemsize:
            part = part.clone()
        found[spec.name] = part.view(dtype).view(spec.shape) if spec.nbytes else base.new_empty(spec.shape, dtype=dtype)
    return found


def bind(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Make the tensors the parameters of `model` (built on the meta device); no byte is copied. Gives `model`.

    The parameters take no gradient: their memory can't be written. Names that only the tensors have are ignored (a
    checkpoint may hold more than a model needs). Parameters tied to a given one are tied again.

    Raises:
        InvalidArgument: a parameter is missing among the tensors, or has another shape; all of them are named.
    """
    keys = model.state_dict(keep_vars=True)
    wrong = [
        f"{name}: {list(tensors[name].shape)} in the checkpoint, {list(slot.shape)} in the model"
        for name, slot in keys.items()
        if name in tensors and tensors[name].shape != slot.shape
    ]
    if wrong:
        raise InvalidArgument(f"the weights don't fit the model: {'; '.join(wrong[:5])}")
    model.requires_grad_(False)
    model.load_state_dict({name: tensors[name] for name in keys if name in tensors}, strict=False, assign=True)
    tie = getattr(model, "tie_weights", None)
    if callable(tie):
        tie()
    missing = [name for name, slot in model.named_parameters() if slot.device.type == "meta"]
    if missing:
        raise InvalidArgument(f"the checkpoint lacks {len(missing)} parameters of the model: {', '.join(missing[:5])}")
    model.requires_grad_(False)  # tying may have made parameters anew
    return model
