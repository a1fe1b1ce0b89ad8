"""`/v1/embeddings`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dataflower.errors import DataflowerError
from dataflower.gateway.http.body import json_object, json_response, read_body
from dataflower.gateway.http.openai.models import Models, text_field
from dataflower.gateway.http.openai.offered import passed
from dataflower.gateway.http.presence import result_of
from dataflower.gateway.http.site import Site
from dataflower.gateway.http.status import BadField
from dataflower.gateway.values import to_array
from dataflower.spec.serving import TEXTS, VECTORS

MOST = 2048
"""Texts of one request, as OpenAI has it."""
PARAMETERS = frozenset(("model", "input", "encoding_format", "dimensions"))
TOKENS = "tokens"
"""Output of an embedder: how many tokens it read, in all or for each text."""


class Embeddings:
    """Vectors of texts, made by an embedder."""

    def __init__(self, site: Site, models: Models) -> None:
        self._site = site
        self._models = models

    def routes(self) -> list[Route]:
        """Where it answers."""
        return [Route("/v1/embeddings", self.embed, methods=["POST"])]

    async def embed(self, request: Request) -> Response:
        """A vector for each text; all texts of a request go to the embedder at once."""
        began = self._site.clock.monotonic()
        body = json_object(await read_body(request, self._site.body_limit))
        name = text_field(body, "model")
        assert name is not None
        passed(body, frozenset(), PARAMETERS)
        texts, form = _texts(body.get("input")), _form(body)
        model = self._models.embedder(name)
        deadline = self._site.deadline(request)
        invocation = await self._site.host.invoke(model.status.name, {TEXTS: texts}, deadline=deadline)
        outputs = await result_of(invocation, request.receive)
        vectors = _vectors(outputs.get(VECTORS), len(texts), name)
        _check_width(body, vectors.shape[1])
        used = int(np.sum(outputs.get(TOKENS, 0)))
        self._site.metrics.generated(name, prompt=used, duration_s=self._site.clock.monotonic() - began)
        data = [
            {"object": "embedding", "index": index, "embedding": _written(vector, form)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": used, "total_tokens": used}
        return json_response(
            {"object": "list", "data": data, "model": name, "usage": usage}, headers={"x-invocation-id": invocation.id}
        )


def _texts(given: Any) -> list[Any]:
    """A text, token ids, or a list of either, as a list."""
    if isinstance(given, str) or _are_tokens(given):
        given = [given]
    if not isinstance(given, list) or not all(isinstance(one, str) or _are_tokens(one) for one in given):
        raise BadField("`input` must be a text, a list of token ids, or a list of these", "input")
    if not 1 <= len(given) <= MOST:
        raise BadField(f"`input` must be 1 to {MOST} texts", "input")
    if not all(given):
        raise BadField("`input` holds an empty text", "input")
    return given


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _form(body: Mapping[str, Any]) -> str:
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise BadField("`encoding_format` must be float or base64", "encoding_format")
    return str(form)


def _check_width(body: Mapping[str, Any], width: int) -> None:
    if body.get("dimensions") not in (None, width):
        raise BadField(f"`dimensions` must be {width}, the length of this model's vectors", "dimensions")


def _vectors(given: Any, count: int, name: str) -> np.ndarray[Any, Any]:
    vectors = None if given is None else to_array(given)
    if vectors is None or vectors.ndim != 2 or len(vectors) != count:
        shape = "nothing" if vectors is None else f"shape {list(vectors.shape)}"
        raise DataflowerError(f"the embedder {name!r} gave {shape} for {count} texts")
    return vectors.astype("<f4", copy=False)


def _written(vector: np.ndarray[Any, Any], form: str) -> Any:
    return base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector.tolist()
