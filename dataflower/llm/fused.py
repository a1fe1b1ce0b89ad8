"""Steps of the fast path as one call into compiled code (`kernels`), where it was compiled.

In bf16 on a CPU, over weights in the layout that oneDNN chose: nothing is laid out or kept twice. Steps in which every
sequence decodes one token go one way (`kernels/decode.cpp`), those with prompts in them another (`kernels/wide.h`).
Everything else runs on torch's operators.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import torch

from dataflower.llm import opaque
from dataflower.llm.attention import StepAttention
from dataflower.llm.kernels import library
from dataflower.llm.kv import KvStore
from dataflower.llm.linear import Linear
from dataflower.llm.lora import LoraBatch, Stack

if TYPE_CHECKING:
    from dataflower.llm.llama import Body, LlamaModel

ROWS = 32
"""Largest batch that decodes as one; beyond, products are bound by arithmetic."""
PLACES = ("qkv", "out", "gate_up", "down")
_BLOCK = 64
_TOLERANCE = 0.02
"""Of the largest output: oneDNN rounds to bf16, the kernel does not."""


class Newest(NamedTuple):
    """The newest tokens of sequences, their positions, the rows that the sequences have in the store, their adapters.

    In a step in which all of them only decode, each token is of a sequence of its own.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    rows: Sequence[int]
    store: KvStore
    lora: LoraBatch | None


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """What came of a decode step, good until the next call of the model.

    `logits` (tokens, vocabulary); of each row `best`, the largest (NaN if one is), and `likely`, where it is first.
    """

    logits: torch.Tensor
    best: list[float]
    likely: list[int]


class _Linear(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
    )


class _Lora(ctypes.Structure):
    _fields_ = (("down", ctypes.c_void_p), ("up", ctypes.c_void_p), ("starts", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (("norm", ctypes.c_void_p), ("mlp_norm", ctypes.c_void_p), ("linear", _Linear * len(PLACES)))


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "width", "heads", "kv_heads", "size", "inner")),
        ("epsilon", ctypes.c_float),
        ("rope_scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("frequencies", "embedding", "norm")),
        ("head", _Linear),
        ("layer", ctypes.c_void_p),
    )


class _Span(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("first", "count", "kv_row", "start"))


class _Step(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "kv_rows", "dense")),
        ("room_rows", ctypes.c_int64),
        ("room_tokens", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("lora", "members", "logits", "best", "likely")),
        ("wanted_count", ctypes.c_int64),
        ("wanted", ctypes.c_void_p),
        ("span_count", ctypes.c_int64),
        ("spans", ctypes.c_void_p),
    )


class FusedDecode:
    """The kernel, over the weights of one model, which it keeps. Make it with `fuse`."""

    def __init__(self, code: ctypes.CDLL, model: LlamaModel, body: Body) -> None:
        self._code, self._kept = code, (body, model.frequencies)
        self._layer_names = [layer.name for layer in body.layers]
        self._vocabulary = body.head.features
        self._layers = (_Layer * len(body.layers))(
            *(
                _Layer(
                    layer.norm.data_ptr(),
                    layer.mlp_norm.data_ptr(),
                    (_Linear * len(PLACES))(*(_linear(getattr(layer, place)) for place in PLACES)),
                )
                for layer in body.layers
            )
        )
        self._model = _Model(
            model.kv.layers, model.width, model.heads, model.kv.heads, model.kv.size,
            body.layers[0].down.inputs, model.epsilon, 1.0, model.frequencies.data_ptr(),
            _address(body.embedding.plain), body.norm.data_ptr(), _linear(body.head), ctypes.addressof(self._layers),
        )  # fmt: skip
        self._most_threads = model.width // _BLOCK  # blocks of the smallest product: more would have nothing to do
        self._wide = model.kv.size % _BLOCK == 0
        self._logits = torch.empty((ROWS, self._vocabulary))  # kept: fresh memory is cleared page by page at each step
        self._best, self._likely = (ctypes.c_float * ROWS)(), (ctypes.c_int64 * ROWS)()
        self._stacks: weakref.WeakKeyDictionary[Stack, _Adapters] = weakref.WeakKeyDictionary()

    def takes(self, attention: StepAttention, tokens: int, wanted: int) -> bool:
        """Whether the step is one for the kernel."""
        return self._wide or _narrow(attention, tokens, wanted)

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: StepAttention,
        lora: LoraBatch | None,
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (wanted, vocabulary) in fp32, good until the next call; the tokens' keys and values are written."""
        given, places = tokens.tolist(), positions.tolist()
        if _narrow(attention, len(given), len(wanted)):
            return self.decode(Newest(given, places, attention.rows, attention.store, lora)).logits
        rows = [*attention.rows, *(span.row for span in attention.spans for _ in range(span.count))]
        spans = [
            *(_Span(index, 1, row, places[index]) for index, row in enumerate(attention.rows)),
            *(_Span(span.first, span.count, span.row, span.start) for span in attention.spans),
        ]
        return self._call(Newest(given, places, rows, attention.store, lora), wide=(spans, wanted)).logits

    def decode(self, newest: Newest) -> Decoded:
        """See `dataflower.llm.model.Model.decode`; at most `ROWS` tokens."""
        return self._call(newest, wide=None)

    def _call(self, newest: Newest, *, wide: tuple[Sequence[_Span], torch.Tensor] | None) -> Decoded:
        """`wide`: the spans of a step with prompts in it, and the rows whose logits are wanted; else all are."""
        tokens, positions, rows, store, lora = newest
        count = len(tokens)
        asked = count if wide is None else len(wide[1])
        logits, best, likely = self._logits, self._best, self._likely
        if asked > ROWS:
            logits = torch.empty((asked, self._vocabulary))
            best, likely = (ctypes.c_float * asked)(), (ctypes.c_int64 * asked)()
        numbers = ctypes.c_int64 * count
        given = numbers(*tokens), numbers(*positions), numbers(*rows)
        adapters = None if lora is None else self._adapters(lora.stack)
        spans = None if wide is None else (_Span * len(wide[0]))(*wide[0])
        step = _Step(
            count, *(ctypes.addressof(each) for each in given), store.dense.data_ptr(),
            *store.room,
            None if adapters is None else ctypes.addressof(adapters.places),
            None if lora is None else lora.members.data_ptr(),
            logits.data_ptr(), ctypes.addressof(best), ctypes.addressof(likely), asked,
            None if wide is None else wide[1].data_ptr(),
            0 if spans is None else len(spans),
            None if spans is None else ctypes.addressof(spans),
        )  # fmt: skip
        threads = min(torch.get_num_threads(), self._most_threads)
        self._code.dataflower_decode(ctypes.byref(self._model), ctypes.byref(step), threads)
        return Decoded(logits[:asked], best[:asked], likely[:asked])

    def _adapters(self, stack: Stack) -> _Adapters:
        if stack not in self._stacks:
            self._stacks[stack] = _Adapters(stack, self._layer_names)
        return self._stacks[stack]


def _narrow(attention: StepAttention, tokens: int, wanted: int) -> bool:
    """Whether nothing but decoding is to be done, and every token's logits are wanted."""
    return attention.decode == tokens == wanted <= ROWS and not attention.spans


class _Adapters:
    """Where the matrices of a stack are. Whoever asks holds the stack, and with it the matrices."""

    def __init__(self, stack: Stack, layers: Sequence[str]) -> None:
        self._starts: dict[tuple[int, ...], Any] = {}
        self.places = (_Lora * (len(layers) * len(PLACES)))()
        for index, key in enumerate(f"{layer}.{place}" for layer in layers for place in PLACES):
            found = stack.places.get(key)
            if found is None:
                continue
            starts = self._starts.get(found.owners)
            if starts is None:
                before = [sum(owner < adapter for owner in found.owners) for adapter in range(len(stack.adapters) + 1)]
                starts = self._starts[found.owners] = (ctypes.c_int64 * len(before))(*before)
            self.places[index] = _Lora(found.down.data_ptr(), found.up.data_ptr(), ctypes.addressof(starts))


def fuse(model: LlamaModel, body: Body) -> FusedDecode | None:
    """The kernel for a model; None if it is not compiled, or the model's shapes, dtype or layout are not its kind."""
    if model.dtype is not torch.bfloat16 or model.device.type != "cpu" or opaque.why_not():
        return None
    linears = [getattr(layer, place) for layer in body.layers for place in PLACES]
    size, heads = model.kv.size, model.heads
    if size % 32 or model.width % _BLOCK or heads % model.kv.heads or len({linear.inputs for linear in linears}) > 3:
        return None
    if any(linear.features % _BLOCK or linear.inputs % _BLOCK for linear in linears) or body.head.bias is not None:
        return None
    if not all(linear.packed for linear in (*linears, body.head)):
        return None
    code = library.load()
    if code is None:
        return None
    kinds = {(linear.features, linear.inputs): linear for linear in (*linears, body.head)}
    return FusedDecode(code, model, body) if all(_agrees(code, linear) for linear in kinds.values()) else None


def _agrees(code: ctypes.CDLL, linear: Linear) -> bool:
    """Whether the kernel reads the layout right: its product is oneDNN's."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn((1, linear.inputs), generator=chance).bfloat16()
    out = torch.empty((1, linear.features))
    code.dataflower_product(ctypes.byref(_linear(linear)), x.data_ptr(), 1, out.data_ptr())
    weight = linear.weights[0]
    expected = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "").float()
    return bool((out - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _linear(linear: Linear) -> _Linear:
    bias = None if linear.bias is None else linear.bias.data_ptr()
    return _Linear(torch.ops.mkldnn.data_ptr(linear.weights[0]), bias, linear.features, linear.inputs)
