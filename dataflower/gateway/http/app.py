"""All of HTTP behind one door."""

from __future__ import annotations

from dataflower.gateway.http.door import Counted, Door
from dataflower.gateway.http.health import Health
from dataflower.gateway.http.invocations import Invocations
from dataflower.gateway.http.site import Site
from dataflower.gateway.http.workflows import Workflows


def application(site: Site, counted: Counted) -> Door:
    """The ASGI application of a site; `counted` is told of every request."""
    parts = (Health(site), Workflows(site), Invocations(site))
    return Door(site, [route for part in parts for route in part.routes()], counted)
