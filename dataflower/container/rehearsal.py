"""What every start does, done once by a spare while it waits.

A forked process copies each page that it writes to first, and counting references writes: finding, compiling and
running a small module touches most of what the user's module will. The sample below is never called.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from dataflower import Stream, function
from dataflower.container import target


class Sample:
    """A stateful function."""

    def setup(self, scale: float = 1.0) -> None:
        """Keep a number."""
        self.scale = scale

    def __call__(self, x: float) -> float:
        """Use it."""
        return x * self.scale


@function(outputs={"item": Stream()})
def sample(x: Any, count: int = 1) -> Iterator[Any]:
    """A function as users write them."""
    for number in range(count):
        yield number, x


def rehearse() -> None:
    """Import this module once more under another name, from its source, and get its function ready."""
    importlib.util.find_spec("dataflower_has_no_such_module")
    spec = importlib.util.spec_from_file_location("dataflower_rehearsal", __file__)
    assert spec is not None
    assert spec.loader is not None
    with open(__file__, encoding="utf-8") as source:
        compile(source.read(), __file__, "exec", dont_inherit=True)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target.bind(module.sample)
    target.build(module.Sample, {})
