"""`/v1/models`, and adapters that come and go while the server runs."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dataflower.errors import Code, DataflowerError, InvocationFailed
from dataflower.gateway.http.body import json_object, json_response, read_body
from dataflower.gateway.http.door import knows
from dataflower.gateway.http.openai.models import Model, Models, flag, text_field
from dataflower.gateway.http.presence import result_of
from dataflower.gateway.http.site import Site
from dataflower.gateway.http.status import BadField
from dataflower.spec.serving import REQUEST

_TRIAL = {"prompt": " ", "max_tokens": 0}
"""A request that generates nothing, but loads the adapter that it names."""
_UNFIT = frozenset({"AdapterInvalid", "AdapterNotFound"})


class Catalogue:
    """What models there are."""

    def __init__(self, site: Site, models: Models) -> None:
        self._site = site
        self._models = models
        self._admins = tuple(key.encode() for key in site.config.admin_keys)

    def routes(self) -> list[Route]:
        """Where it answers."""
        return [
            Route("/v1/models", self.all),
            Route("/v1/models/{model:path}", self.one),
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
        ]

    async def all(self, request: Request) -> Response:
        """Models and adapters."""
        return json_response({"object": "list", "data": [_described(model) for model in self._models.all()]})

    async def one(self, request: Request) -> Response:
        """One of them."""
        return json_response(_described(self._models.any(request.path_params["model"])))

    async def load(self, request: Request) -> Response:
        """Make an adapter on the server's disk a model. It is loaded and checked before this answers."""
        self._check_admin(request)
        body = json_object(await read_body(request, self._site.body_limit))
        name, path = text_field(body, "lora_name"), text_field(body, "lora_path")
        assert name is not None
        assert path is not None
        if not path.startswith("/"):
            raise BadField(f"`lora_path` {path!r} is no full path of a folder on the server's disk", "lora_path")
        base = text_field(body, "base_model_name", required=False)
        status, loaded = self._models.prepare(name, path, base, again=flag(body, "load_inplace"))
        inputs = {REQUEST: {**_TRIAL, "adapter": loaded.reference}}
        invocation = await self._site.host.invoke(status.name, inputs, deadline=self._site.deadline(request))
        try:
            await result_of(invocation, request.receive)
        except InvocationFailed as error:
            if error.failure.kind in _UNFIT:  # what is wrong with the adapter, in its reader's own words
                raise BadField(error.failure.message, "lora_path", code=error.code) from None
            raise
        await self._models.remember(loaded)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully on '{status.name}'.")

    async def unload(self, request: Request) -> Response:
        """Make it a model no longer; requests that run go on."""
        self._check_admin(request)
        name = text_field(json_object(await read_body(request, self._site.body_limit)), "lora_name")
        assert name is not None
        await self._models.forget(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    def _check_admin(self, request: Request) -> None:
        if not self._admins:
            raise DataflowerError("nobody may do this: set `admin_keys`", code=Code.PERMISSION_DENIED)
        given = request.headers.get("authorization", "")
        if not given:
            raise DataflowerError("no admin key was sent (authorization: Bearer KEY)", code=Code.UNAUTHENTICATED)
        if not knows(given, self._admins):
            raise DataflowerError("this needs an admin key", code=Code.PERMISSION_DENIED)


def _described(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.status.applied_at),
        "owned_by": "dataflower",
        "root": model.root,
        "parent": model.parent,
    }
