"""Which workflows are models, and under which names they and their adapters are known."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflower.errors import Code, InvalidArgument, NotFound, Unavailable
from dataflower.gateway.http.openai.kept import Kept, Loaded
from dataflower.gateway.http.status import BadField
from dataflower.host.api import HostApi, WorkflowStatus
from dataflower.spec.serving import DELTAS, Role, serving
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.workflow import Stage

ADAPTERS = "adapters"
"""Parameter of a chat stage that names its adapters."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a name means: a workflow and, perhaps, one of its adapters. `parent`: the bare model of an adapter."""

    name: str
    status: WorkflowStatus
    adapter: str | Mapping[str, Any] | None = None

    @property
    def parent(self) -> str | None:
        """The bare model, if this is an adapter on it, or a function that serves one (`adapter:` of its stage)."""
        if self.adapter is not None:
            return self.status.name
        stage = _chat_stage(self.status)
        return stage.model or None if stage is not None and stage.adapter else None

    @property
    def root(self) -> str:
        """Where its weights are from, as far as the door knows."""
        if isinstance(self.adapter, Mapping):
            return str(self.adapter.get("path"))
        stage = None if self.adapter else _chat_stage(self.status)
        return stage.adapter if stage is not None and stage.adapter else self.name


class Models:
    """The host's workflows as models. Asked anew each time: workflows come and go."""

    def __init__(self, host: HostApi, state_dir: Path | None = None) -> None:
        """`state_dir`: where adapters that come are kept for the next server; None: nowhere."""
        self._host = host
        self._kept = Kept(state_dir)
        self._loaded = {loaded.name: loaded for loaded in self._kept.read()}
        self._generations = itertools.count(max((loaded.generation for loaded in self._loaded.values()), default=0) + 1)
        self._writing = asyncio.Lock()

    def all(self) -> list[Model]:
        """Chat models, their adapters, embedders; a name that would mean two things is listed for the first."""
        found: dict[str, Model] = {}
        statuses = self._host.workflows()
        for status in statuses:
            if is_chat(status) or is_embedder(status):
                found[status.name] = Model(status.name, status)
        for status in statuses:
            if is_chat(status):
                for model in self._adapters(status):
                    found.setdefault(model.name, model)
        return list(found.values())

    def chat(self, name: str) -> Model:
        """A model that continues chats and texts; BadField (NOT_FOUND) if there is none of the name."""
        return self._find(name, embeds=False)

    def embedder(self, name: str) -> Model:
        """A model that makes vectors of texts; BadField (NOT_FOUND) if there is none of the name."""
        return self._find(name, embeds=True)

    def any(self, name: str) -> Model:
        """Whatever kind of model it is; BadField (NOT_FOUND)."""
        for model in self.all():
            if model.name == name:
                return model
        raise self._unknown(name, [model.name for model in self.all()])

    def _find(self, name: str, *, embeds: bool) -> Model:
        fits = is_embedder if embeds else is_chat
        try:
            status = self._host.workflow(name)
        except NotFound:
            status = None
        if status is not None and fits(status):
            return Model(name, status)
        if not embeds and (adapter := self._adapter(name)) is not None:
            return adapter
        if status is not None and (is_chat(status) or is_embedder(status)):
            does = "makes vectors" if is_embedder(status) else "continues texts"
            raise BadField(f"the model {name!r} {does}; it can't do this", "model")
        raise self._unknown(name, [model.name for model in self.all() if fits(model.status)])

    def _unknown(self, name: str, known: list[str]) -> BadField:
        hint = did_you_mean(name, known, f"there is {', '.join(known) or 'none'}")
        return BadField(f"no model {name!r} ({hint})", "model", code=Code.NOT_FOUND, reason="model_not_found")

    # --- adapters --------------------------------------------------------------------------------------------

    def _adapter(self, name: str) -> Model | None:
        loaded = self._loaded.get(name)
        if loaded is not None:
            try:
                return Model(name, self._host.workflow(loaded.workflow), loaded.reference)
            except NotFound:
                return None
        for status in self._host.workflows():
            if is_chat(status) and name in declared(status):
                return Model(name, status, name)
        return None

    def _adapters(self, status: WorkflowStatus) -> Iterator[Model]:
        for name in declared(status):
            if name not in self._loaded:
                yield Model(name, status, name)
        for loaded in self._loaded.values():
            if loaded.workflow == status.name:
                yield Model(loaded.name, status, loaded.reference)

    def prepare(self, name: str, path: str, base: str | None, *, again: bool) -> tuple[WorkflowStatus, Loaded]:
        """What loading an adapter would make of it; nothing is remembered yet.

        Raises:
            BadField: the name is taken (and `again` is false), or it is not clear which model it goes on.
        """
        taken = any(model.name == name for model in self.all())
        if taken and not (again and name in self._loaded):
            raise BadField(f"there is a model {name!r} already; load_inplace reads an adapter again", "lora_name")
        if base is None:
            models = [status for status in self._host.workflows() if is_chat(status)]
            if len(models) != 1:
                names = ", ".join(status.name for status in models) or "none"
                raise BadField(f"say which model it goes on (base_model_name); there is {names}", "base_model_name")
            status = models[0]
        else:
            status = self.chat(base).status
        return status, Loaded(name, status.name, path, next(self._generations))

    async def remember(self, loaded: Loaded) -> None:
        """The adapter works: it is a model from now on, and with the next server."""
        self._loaded[loaded.name] = loaded
        await self._keep()

    async def forget(self, name: str) -> None:
        """It is no model any more; BadField (NOT_FOUND) if it was not loaded."""
        if name not in self._loaded:
            why = "is in the workflow file: change that" if self._adapter(name) is not None else "is not there"
            raise BadField(f"no adapter {name!r} to unload: it {why}", "lora_name", code=Code.NOT_FOUND)
        del self._loaded[name]
        await self._keep()

    async def _keep(self) -> None:
        """Write down what is loaded. Raises Unavailable if that fails: then it lasts as long as this server."""
        async with self._writing:
            try:
                await asyncio.to_thread(self._kept.write, tuple(self._loaded.values()))
            except OSError as error:
                raise Unavailable(f"done, but the next server will not know of it: {error}") from None


def is_chat(status: WorkflowStatus) -> bool:
    """Whether a workflow is a chat stage to its caller."""
    return serving(status.workflow).role is Role.CHAT


def is_embedder(status: WorkflowStatus) -> bool:
    """Whether a workflow makes vectors of texts."""
    return serving(status.workflow).role is Role.EMBEDDER


def declared(status: WorkflowStatus) -> list[str]:
    """Names of the adapters that the chat stage of a workflow has by its file."""
    stage = _chat_stage(status)
    given = (stage.params.get(ADAPTERS) or {}) if stage is not None else {}
    return [str(name) for name in given] if isinstance(given, Mapping) else []


def _chat_stage(status: WorkflowStatus) -> Stage | None:
    """Where the deltas of a chat model come from."""
    for output in status.workflow.outputs:
        stage = status.workflow.stages.get(output.edge.source.stage)
        if output.name == DELTAS and stage is not None:
            return stage
    return None


def text_field(body: Mapping[str, Any], name: str, *, required: bool = True) -> str | None:
    """A field that must be a text; BadField if it is none, or missing."""
    value = body.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value:
        what = "is missing" if value is None else "must be a text"
        raise BadField(f"`{name}` {what}", name)
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A field that must be true or false; absent and null are false."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadField(f"`{name}` must be true or false", name)
    return bool(value)


def count_field(body: Mapping[str, Any], name: str, most: int) -> int:
    """A field that must be a whole number from 1 to `most`; absent and null are 1."""
    value = body.get(name)
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadField(f"`{name}` must be a whole number from 1 to {most}", name)
    return value


def checked(error: InvalidArgument) -> BadField:
    """The error of a request's check, with the field that it names."""
    message = error.message.removeprefix("request: ")
    _, at, path = message.partition(" - at `$.")
    param = path.rstrip("`") if at else message.partition(":")[0].partition(" ")[0]
    if at:
        message = f"{param}: {message.partition(' - at ')[0][:1].lower()}{message.partition(' - at ')[0][1:]}"
    return BadField(message, param)
