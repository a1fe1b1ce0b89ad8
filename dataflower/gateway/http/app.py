"""All of HTTP behind one door."""

from __future__ import annotations

from dataflower.gateway.http.door import Door
from dataflower.gateway.http.health import Health
from dataflower.gateway.http.inference import Inference
from dataflower.gateway.http.invocations import Invocations
from dataflower.gateway.http.openai.catalogue import Catalogue
from dataflower.gateway.http.openai.completions import Completions
from dataflower.gateway.http.openai.embeddings import Embeddings
from dataflower.gateway.http.openai.models import Models
from dataflower.gateway.http.openapi import OpenApi
from dataflower.gateway.http.site import Site
from dataflower.gateway.http.workflows import Workflows


def application(site: Site) -> Door:
    """The ASGI application of a site."""
    models = Models(site.host, site.config.state_dir)
    parts = (
        Health(site),
        OpenApi(site),
        Workflows(site),
        Invocations(site),
        Inference(site),
        Catalogue(site, models),
        Completions(site, models),
        Embeddings(site, models),
    )
    return Door(site, [route for part in parts for route in part.routes()], site.metrics.requested)
