"""`dataflower schema`: what editors check workflow files with."""

from __future__ import annotations

import json


def schema() -> None:
    """Print the JSON Schema of workflow files.

    Example: dataflower schema > dataflower.schema.json
    """
    from dataflower.spec.schema import workflow_schema

    print(json.dumps(workflow_schema(), indent=2))


command = schema
