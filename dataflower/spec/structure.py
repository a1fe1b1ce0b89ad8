"""From a parsed file to a `WorkflowDocument`: keys and value types checked, every finding with its place."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import BaseModel, ValidationError

from dataflower.errors import Problem
from dataflower.spec.document import ALIASES, WorkflowDocument
from dataflower.spec.suggest import did_you_mean, nearest
from dataflower.spec.tree import Path, Tree
from dataflower.spec.workflow import API_VERSION

NO_MAP, START = "a workflow file is a map", "start with `apiVersion: dataflower/v1`"
_ROUNDS = 20


def read_document(tree: Tree) -> tuple[WorkflowDocument | None, frozenset[str]]:
    """The document, and the stages that had findings (so that nobody reports what follows from them).

    Findings go to `tree.problems`. What is wrong is left out, and a misspelt key put right, so that the rest can be
    checked in the same run; None if too little is left.
    """
    if not isinstance(tree.data, dict):
        if tree.data is not None:
            tree.problems.append(tree.problem((), NO_MAP, START))
        return None, frozenset()
    data = copy.deepcopy(tree.data)
    blamed: set[str] = set()
    for _ in range(_ROUNDS):
        try:
            return WorkflowDocument.model_validate(data), frozenset(blamed)
        except ValidationError as error:
            findings = _findings(error, tree)
        blamed.update(str(path[1]) for path in findings if len(path) > 1 and path[0] == "stages")
        tree.problems.extend(_problem(tree, path, finding) for path, finding in findings.items())
        for path, finding in reversed(findings.items()):  # from the end, so that list positions stay true
            if not _repair(tree, data, path, str(finding["type"])):
                return None, frozenset(blamed)
    return None, frozenset(blamed)


def _findings(error: ValidationError, tree: Tree) -> dict[Path, dict[str, Any]]:
    """One finding for each place (every member of a union that does not fit speaks up)."""
    found: dict[Path, dict[str, Any]] = {}
    for finding in error.errors(include_url=False):
        found.setdefault(_path(finding["loc"], tree), dict(finding))
    misspelt = {
        (*path[:-1], nearest(str(path[-1]), _fields(path[:-1])))
        for path, finding in found.items()
        if finding["type"] == "extra_forbidden"
    }
    return {path: f for path, f in found.items() if f["type"] != "missing" or path not in misspelt}


def _path(location: Path, tree: Tree) -> Path:
    """Where in the file: without the tags and names of union members that pydantic puts in."""
    path = tuple(part for part in location if not str(part).startswith("<"))
    members = ("int", "str", "list[", "constrained")
    while path and path not in tree.marks and path[:-1] in tree.marks and str(path[-1]).startswith(members):
        path = path[:-1]
    return path


def _problem(tree: Tree, path: Path, finding: dict[str, Any]) -> Problem:
    kind, context = finding["type"], finding.get("ctx", {})
    name = str(next((part for part in reversed(path) if isinstance(part, str)), ""))
    if kind == "extra_forbidden":
        known = _fields(path[:-1])
        every = f"known: {', '.join(known)}" if known else ""
        return tree.problem(path, f"unknown key {name!r}", did_you_mean(name, known, every), key=True)
    if kind == "missing":
        hint = {"apiVersion": "write `apiVersion: dataflower/v1`", "kind": "write `kind: Workflow`"}.get(name, "")
        return tree.problem(path[:-1], f"key {name!r} is missing", hint, key=True)
    given = finding.get("input")
    is_edge = "<edge>" in finding["loc"][-1:]
    shown = repr(given) if isinstance(given, str | int | float | bool) else _what(given)
    if kind == "literal_error":
        words = [word.strip("'") for word in str(context.get("expected", "")).replace(" or ", ", ").split(", ")]
        if len(words) == 1:
            return tree.problem(path, f"{name}: must be {words[0]}, not {shown}")
        close = nearest(str(given), words)
        return tree.problem(
            path, f"{name}: {shown} is not one of {', '.join(words)}", f"did you mean {close!r}?" if close else ""
        )
    if kind == "too_short":
        return tree.problem(path, f"{name}: needs at least one")
    if kind == "value_error":
        return tree.problem(path, f"{name}: {context.get('error')}")
    wanted = {
        "model_type": "`stage.port` or a map with each, gather, keyed or merge" if is_edge else "a map",
        "dict_type": "a map",
        "list_type": "a list",
        "string_type": "a string",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
    }.get(kind)
    if wanted:
        return tree.problem(path, f"{name}: expected {wanted}, not {shown}")
    return tree.problem(path, f"{name}: {finding['msg'][0].lower()}{finding['msg'][1:]}, not {shown}")


def _what(value: object) -> str:
    if isinstance(value, dict):
        return "a map"
    return "a list" if isinstance(value, list) else "nothing"


_STAND_INS: dict[Path, Any] = {
    ("apiVersion",): API_VERSION,
    ("kind",): "Workflow",
    ("metadata",): {"name": "unnamed"},
    ("metadata", "name"): "unnamed",
}


def _repair(tree: Tree, data: Any, path: Path, kind: str) -> bool:
    """Take the offending value out, or put the key right; False if the document can't do without it."""
    for part in path[:-1]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    last = path[-1] if path else ""
    if path == ("stages",):
        return False
    if path in _STAND_INS:
        data[last] = _STAND_INS[path]
        return True
    if isinstance(data, dict) and last in data:
        value = data.pop(last)
        right = nearest(str(last), _fields(path[:-1])) if kind == "extra_forbidden" else None
        if right is not None and right not in data:
            data[right] = value
            _move_marks(tree, path, (*path[:-1], right))
        return True
    if isinstance(data, list) and isinstance(last, int) and last < len(data):
        del data[last]
        return True
    return False


def _move_marks(tree: Tree, old: Path, new: Path) -> None:
    for path, mark in list(tree.marks.items()):
        if path[: len(old)] == old:
            tree.marks[(*new, *path[len(old) :])] = mark


def _fields(path: Path) -> list[str]:
    """Keys that are known at a place in the file."""
    annotation: Any = WorkflowDocument
    for part in path:
        annotation = _step(annotation, part)
        if annotation is None:
            return []
    models = [a for a in _members(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
    fields = (field for model in models[:1] for field in model.model_fields.items())
    return [field.alias or name for name, field in fields if name not in ALIASES]


def _step(annotation: Any, part: str | int) -> Any:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                if part in (name, field.alias):
                    return field.annotation
        arguments = getattr(member, "__args__", ())
        if getattr(member, "__origin__", None) in (dict, list) and arguments:
            return arguments[-1]
    return None


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, `Annotated` taken off."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    arguments = getattr(annotation, "__args__", ())
    if arguments and getattr(annotation, "__origin__", None) not in (dict, list):
        return [inner for argument in arguments for inner in _members(argument)]
    return [annotation]
