"""What a function is: user code with named, typed ports.

    @function(outputs={"objects": Stream(Json())})
    class Detect:
        def setup(self, threshold: float = 0.3) -> None: ...   # once per container
        def __call__(self, frame): ...                          # once per task

A function takes its inputs as parameters and hands out what it returns or yields:

* one output port (the default, called `out`): the value itself;
* several ports: a dict from port to value; a port that is left out is *absent* for that task or item;
* a generator streams: every `yield` is one item of all its stream ports, its `return` value fills the others;
* a plain function with a stream port returns a list, whose elements are sent as the items;
* with `batch=True` one call takes several tasks: lists of values in, a list of outputs back.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")

DEFAULT_PORT = "out"
"""Name of the only output port of a function that declares none."""

ATTRIBUTE = "__dataflower__"
"""Attribute under which `@function` leaves its `FunctionSpec` on the user's object."""


class Kind(enum.Enum):
    """What a port carries."""

    ANY = "any"
    JSON = "json"
    STRING = "string"
    BYTES = "bytes"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    TENSOR = "tensor"


DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
}
"""Open Inference Protocol datatype -> numpy name. YAML accepts either spelling and writes the first."""

Dim = int | str
"""A size of a tensor: a number, or a name that must have one value throughout a task (`[N, 3, H, W]`)."""


@dataclass(frozen=True, slots=True)
class PortType:
    """Type of the data on a port. `dtype` and `shape` are set for tensors only; shape None means any rank."""

    kind: Kind = Kind.ANY
    dtype: str = ""
    shape: tuple[Dim, ...] | None = None

    def __str__(self) -> str:
        if self.kind is not Kind.TENSOR:
            return str(self.kind.value)
        dims = "..." if self.shape is None else ", ".join(str(d) for d in self.shape)
        return f"{self.dtype or 'tensor'}[{dims}]"


@dataclass(frozen=True, slots=True)
class Port:
    """A named end of a stage. `stream`: carries a sequence of items instead of one value."""

    name: str
    type: PortType = PortType()
    stream: bool = False
    optional: bool = False
    default: Any = None


@dataclass(frozen=True, slots=True)
class Signature:
    """The ports of a function, read from its source or from the live object (both give the same).

    `params` are the keyword parameters of `setup` (stateful functions), as far as ports tell their types: they are set
    by the stage's `params:`. A stateless function takes `params:` for those of its inputs that no edge feeds.
    `preload` are the heavy top-level imports of its module, in order: they choose the zygote.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    params: tuple[Port, ...] = ()
    takes_any_param: bool = False
    """Whether `setup` has `**kwargs`."""
    takes_any_input: bool = False
    stateful: bool = False
    preload: tuple[str, ...] = ()
    batch: bool = False
    """Whether one call takes several tasks."""
    context: bool = False
    """Whether it asks for its `Context`."""


class Stream(Generic[T]):
    """Marks a stream port, in `outputs={"frames": Stream(Tensor("UINT8", ["H", "W", 3]))}` and in annotations.

    A parameter annotated `Stream` (or `Stream[np.ndarray]`) receives an iterator over the items, in order,
    while the producer still runs.
    """

    def __init__(self, item: PortType | None = None) -> None:
        self.item = item or PortType()

    def __iter__(self) -> Iterator[T]:  # only so that annotated parameters type-check in `for`
        raise TypeError("Stream is a marker; the function receives an iterator")


def Tensor(dtype: str, shape: Sequence[Dim] | None = None) -> PortType:
    """Type of a tensor port; `dtype` in either spelling (`FP32`, `float32`), named sizes as strings."""
    upper = {numpy: oip for oip, numpy in DTYPES.items()}.get(dtype, dtype)
    if upper not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    return PortType(Kind.TENSOR, upper, None if shape is None else tuple(shape))


def Json() -> PortType:
    """Type of a port that carries numbers, strings, lists and maps."""
    return PortType(Kind.JSON)


def Text() -> PortType:
    """Type of a port that carries one string."""
    return PortType(Kind.STRING)


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """What `@function` was told."""

    outputs: Mapping[str, PortType | Stream[Any]] = field(default_factory=dict)
    inputs: Mapping[str, PortType | Stream[Any]] = field(default_factory=dict)
    batch: bool = False


F = TypeVar("F", bound=Callable[..., Any])


@overload
def function(target: F) -> F: ...
@overload
def function(
    *,
    outputs: str | Sequence[str] | Mapping[str, PortType | Stream[Any]] | None = ...,
    inputs: Mapping[str, PortType | Stream[Any]] | None = ...,
    batch: bool = ...,
) -> Callable[[F], F]: ...
def function(
    target: Any = None,
    *,
    outputs: str | Sequence[str] | Mapping[str, PortType | Stream[Any]] | None = None,
    inputs: Mapping[str, PortType | Stream[Any]] | None = None,
    batch: bool = False,
) -> Any:
    """Declare a function, generator function, coroutine function, or a class with `__call__` (and `setup`).

    The object is returned unchanged but for one attribute, so it stays callable and testable as it is.
    `outputs`: one port name, several, or a mapping from name to type. The mapping must be a literal:
    `dataflower validate` reads it from the source without importing it. `batch`: one call takes several tasks, each
    parameter is the list of their values, and it returns the list of their outputs (docs/semantics.md, Batches).
    """

    def mark(obj: Any) -> Any:
        ports: Mapping[str, PortType | Stream[Any]]
        if outputs is None:
            ports = {}
        elif isinstance(outputs, str):
            ports = {outputs: PortType()}
        elif isinstance(outputs, Mapping):
            ports = dict(outputs)
        else:
            ports = {name: PortType() for name in outputs}
        setattr(obj, ATTRIBUTE, FunctionSpec(outputs=ports, inputs=dict(inputs or {}), batch=batch))
        return obj

    return mark if target is None else mark(target)


def streams(target: Callable[..., Any]) -> bool:
    """Whether calling `target` gives a generator, so that its outputs are streams unless declared otherwise."""
    call = target.__call__ if inspect.isclass(target) else target
    return inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)
