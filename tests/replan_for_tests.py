"""Waiting for a server to plan anew."""

from __future__ import annotations

import time

from dataflower.gateway.client import Client
from dataflower.gateway.messages import WorkflowInfo
from dataflower.host.api import ReplanOutcome


def until_decided(client: Client, name: str) -> WorkflowInfo:
    """The workflow when something has come of a decision."""
    end = time.monotonic() + 40
    while time.monotonic() < end:
        info = client.workflow(name)
        last = info.replanning.last if info.replanning else None
        if last is not None and last.outcome is not ReplanOutcome.PLANNING:
            return info
        time.sleep(0.2)  # a record that nobody announces
    raise AssertionError("no plan was made anew")
