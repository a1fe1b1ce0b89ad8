"""What the tasks of a language model weigh that wait in its queue: long prompts and answers count for several."""

from __future__ import annotations

from dataflower.core.instance import Instance
from dataflower.core.lengths import length_of
from dataflower.core.plan import TokenPlan
from dataflower.wire import Value


class Scale:
    """Weighs each task once, when it is put on; `total` of those that lie there, in tasks of the usual weight.

    A task whose inputs say nothing of its length counts as a usual one.
    """

    def __init__(self, tokens: TokenPlan) -> None:
        self._tokens = tokens
        self._weights: dict[Instance, float] = {}
        self.total = 0.0

    def put(self, instance: Instance) -> None:
        """It waits."""
        weight = self._weigh(instance)
        self._weights[instance] = weight
        self.total += weight

    def remove(self, instance: Instance) -> None:
        """It waits no more."""
        weight = self._weights.pop(instance, 0.0)
        self.total = self.total - weight if self._weights else 0.0  # nothing is left of rounding

    def _weigh(self, instance: Instance) -> float:
        for payload in instance.payloads:
            length = length_of(payload) if isinstance(payload, Value) else None
            if length is not None:
                return self._tokens.weight(length)
        return 1.0

    def check_integrity(self, waiting: int) -> None:
        """The books agree with each other and with the queue."""
        assert len(self._weights) == waiting, "tasks on the scale"
        assert abs(sum(self._weights.values()) - self.total) <= 1e-6 * (1.0 + self.total), "weight of the queue"
