"""`dataflower fmt`: the same file, tidied. Comments and the order of keys stay; nothing that it means changes."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from dataflower.errors import WorkflowInvalid
from dataflower.spec.document import ALIASES
from dataflower.spec.function import DTYPES
from dataflower.spec.structure import NO_MAP, START
from dataflower.spec.tree import parse

_NUMPY_NAMES = {numpy: name for name, numpy in DTYPES.items()}


def format_text(text: str, file: str = "<text>") -> str:
    """Two spaces a level, one form of each name (Ray's replica names, dtypes of the Open Inference Protocol).

    Raises:
        WorkflowInvalid: not YAML, or no map.
    """
    before = parse(text, file)
    if before.data is None or before.problems:
        raise WorkflowInvalid(tuple(before.problems))
    if not isinstance(before.data, dict):
        raise WorkflowInvalid((before.problem((), NO_MAP, START),))
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 1_000_000  # folding would change what long lines look like, not what they mean
    yaml.preserve_quotes = True
    yaml.allow_unicode = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    _tidy(document)
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    tidied = "\n".join(lines).strip("\n") + "\n"
    expected = before.data
    _tidy(expected)
    return tidied if parse(tidied, file).data == expected else text  # a block string may depend on what was tidied away


def _tidy(document: Any) -> None:
    if not isinstance(document, dict):
        return
    for stage in _maps(document.get("stages")):
        _tidy_stage(stage)
    for profile in _maps(document.get("profiles")):
        for stage in _maps(profile.get("stages")):
            _tidy_stage(stage)
    for port in _maps(document.get("inputs")):
        _tidy_port(port)


def _tidy_stage(stage: Any) -> None:
    for place in (stage, stage.get("scaling")):
        for alias, name in ALIASES.items():
            if isinstance(place, dict) and alias in place and name not in place:
                _rename(place, alias, name)
    for key in ("types", "outputs"):
        for port in _maps(stage.get(key)):
            _tidy_port(port)


def _tidy_port(port: Any) -> None:
    if port.get("dtype") in _NUMPY_NAMES:
        port["dtype"] = _NUMPY_NAMES[port["dtype"]]


def _maps(parent: Any) -> list[Any]:
    return [child for child in parent.values() if isinstance(child, dict)] if isinstance(parent, dict) else []


def _rename(place: dict[str, Any], old: str, new: str) -> None:
    if isinstance(place, CommentedMap):
        position = list(place).index(old)
        comment = place.ca.items.pop(old, None)
        place.insert(position, new, place.pop(old))
        if comment is not None:
            place.ca.items[new] = comment
    else:
        place[new] = place.pop(old)
