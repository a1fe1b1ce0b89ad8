"""A parameter that the engine fills with the Context is no input port, read from source or from the live object."""

from __future__ import annotations

from dataflower.spec.context import Context
from dataflower.spec.signature import inspect_signature, read_signature

SOURCE = """
def by_name(x, context): ...
def by_type(x, about: Context, n: int = 3): ...
def quoted(x, about: "dataflower.Context"): ...
"""


def by_name(x, context): ...  # type: ignore[no-untyped-def]


def by_type(x: int, about: Context) -> None: ...


def test_from_source() -> None:
    names = {name: [port.name for port in read_signature(SOURCE, "f.py", name).inputs] for name in FUNCTIONS}
    assert names == {"by_name": ["x"], "by_type": ["x", "n"], "quoted": ["x"]}


FUNCTIONS = ("by_name", "by_type", "quoted")


def test_from_the_live_object() -> None:
    assert [port.name for port in inspect_signature(by_name).inputs] == ["x"]
    assert [port.name for port in inspect_signature(by_type).inputs] == ["x"]
