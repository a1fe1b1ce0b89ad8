"""Files that verbs write: complete or not there, and never half of an old one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dataflower.errors import InvalidArgument


def write_text(target: Path, text: str, option: str = "--out") -> None:
    """Put a text in the place of whatever the file holds; its folder is made.

    Raises:
        InvalidArgument: that is not possible; the message names the option that chose the file.
    """
    made = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text, encoding="utf-8")
        made.replace(target)
    except OSError as error:
        made.unlink(missing_ok=True)
        raise InvalidArgument(f"can't write {str(target)!r}: {error.strerror} ({option})") from error


def write_yaml(target: Path, data: Any, head: str = "") -> None:
    """The same for plain values, under a line of comment."""
    write_text(target, (f"# {head}\n" if head else "") + yaml_text(data))


def yaml_text(data: Any) -> str:
    """Plain values as YAML; small maps of numbers on one line each."""
    import io

    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    def shaped(value: Any) -> Any:
        if isinstance(value, dict):
            flat = value and not any(isinstance(item, dict | list) for item in value.values())
            made = CommentedMap((key, shaped(item)) for key, item in value.items())
            if flat and len(value) > 1:
                made.fa.set_flow_style()
            return made
        if isinstance(value, list):
            items = CommentedSeq(shaped(item) for item in value)
            if not any(isinstance(item, dict | list) for item in value):
                items.fa.set_flow_style()
            return items
        return value

    writer = YAML()
    writer.width = 4096
    writer.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    data = shaped(data)
    if isinstance(data, CommentedMap):
        data.fa.set_block_style()
    writer.dump(data, out)
    return out.getvalue().rstrip("\n") + "\n"
