"""Functions that hold weights; `tests/` must be on the code path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from dataflower import checkpoint
from dataflower.spec.function import Json, function


@function(outputs={"out": Json()})
class Holder:
    """Holds a model from its setup on; says which, in which process."""

    def setup(self, model: str) -> None:
        self.weights = checkpoint.open(model)

    def __call__(self, x: int) -> Mapping[str, Any]:
        state = hashlib.sha256()
        for name in self.weights.files:
            state.update(self.weights.read(name))
        return {"digest": self.weights.digest, "sha256": state.hexdigest(), "pid": os.getpid()}
