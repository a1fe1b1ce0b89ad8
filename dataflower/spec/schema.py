"""The JSON Schema of workflow files, for editors and for checks without dataflower."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from dataflower.spec.document import WorkflowDocument

SCHEMA_FILE = "dataflower.schema.json"
"""Name under which `init` and the docs save it; a file points at it by `# yaml-language-server: $schema=...`."""


class _Generator(GenerateJsonSchema):
    """Leaves out what editors would only repeat: titles of single keys, and null for keys that may be absent."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        inner = super().default_schema(schema)
        if inner.get("default", ...) is None:
            del inner["default"]
        return inner


def workflow_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, as plain data."""
    schema = WorkflowDocument.model_json_schema(by_alias=True, schema_generator=_Generator)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dataflower workflow",
        **{key: value for key, value in schema.items() if key != "title"},
    }
