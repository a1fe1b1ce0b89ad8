"""Whether the server lives and is ready, and what it counts."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dataflower.gateway.http.body import json_response
from dataflower.gateway.http.site import Site


class Health:
    """For load balancers and orchestrators (no key is asked for), and for Prometheus."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        """Where it answers."""
        return [Route("/healthz", self.alive), Route("/readyz", self.ready), Route("/metrics", self.metrics)]

    async def alive(self, request: Request) -> Response:
        """The loop turns: that is all that this says."""
        return json_response({"status": "ok", "version": self._site.version})

    async def ready(self, request: Request) -> Response:
        """503 as soon as the server drains, so that no new calls are sent here."""
        closing = self._site.closing
        return json_response({"status": "stopping" if closing else "ready"}, 503 if closing else 200)

    async def metrics(self, request: Request) -> Response:
        """In the format that the scraper asks for."""
        text, content_type = self._site.metrics.render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})
