"""Reading the YAML that ApplyWorkflow brings."""

from __future__ import annotations

from dataflower.spec.workflow import Workflow


def load_source(text: str, file_name: str) -> Workflow:
    """The workflow in a YAML text; WorkflowInvalid with every problem, under `file_name`."""
    from dataflower.spec.load import load_text

    return load_text(text, file_name)
