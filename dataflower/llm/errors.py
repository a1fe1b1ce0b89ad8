"""Every way in which the LLM runner says no."""

from __future__ import annotations

from dataflower.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable


class PromptTooLong(InvalidArgument):
    """The prompt does not fit the model's context."""


class SchemaInvalid(InvalidArgument):
    """A JSON schema that can't be followed."""


class AdapterInvalid(InvalidArgument):
    """Not an adapter in PEFT's format, or one for another model."""


class AdapterNotFound(NotFound):
    """No adapter of that name is loaded."""


class KvExhausted(ResourceExhausted):
    """The sequence alone would need more key-value blocks than there are."""


class QueueFull(ResourceExhausted):
    """As many sequences wait as are allowed to."""


class UnsupportedModel(FailedPrecondition):
    """An architecture that the runner can't drive."""


class RunnerClosed(Unavailable):
    """The runner was closed, or died of an error."""


class NotFinite(FailedPrecondition):
    """The model gave NaN or infinity for this sequence."""
