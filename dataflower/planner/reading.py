"""YAML or JSON text -> a checked document, with every fault named by file, line and column at once."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from dataflower.errors import InvalidArgument, Problem
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import Path, Tree, parse


class DocumentInvalid(InvalidArgument):
    """A plan or profile file that does not hold together; `problems` lists everything wrong with it at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


D = TypeVar("D", bound=BaseModel)


def read(text: str, file: str, model: type[D], made_by: str) -> tuple[D, Tree]:
    """The document in a text, and where its keys stand; `made_by` says how one comes by such a file.

    Raises:
        DocumentInvalid: not YAML, a key that is missing, unknown or of the wrong kind.
    """
    tree = parse(text, file, made_by)
    if tree.problems:
        raise DocumentInvalid(tuple(tree.problems))
    try:
        return model.model_validate(tree.data), tree
    except ValidationError as error:
        raise DocumentInvalid(_problems(error, tree)) from None


def _problems(error: ValidationError, tree: Tree) -> tuple[Problem, ...]:
    found = []
    for detail in error.errors(include_url=False):
        path: Path = tuple(detail["loc"])
        match detail["type"]:
            case "extra_forbidden":
                beside = _keys(tree.data, path[:-1]) - {str(path[-1])}
                known = ", ".join(sorted(beside)) or "none"
                found.append(tree.problem(path, f"unknown key {path[-1]!r}", f"its neighbours: {known}", key=True))
            case "missing":
                near = did_you_mean(str(path[-1]), _keys(tree.data, path[:-1]), "")
                found.append(tree.problem(path[:-1], f"{path[-1]!r} is missing", near, key=True))
            case _ if not path and not isinstance(tree.data, dict):
                found.append(tree.problem(path, "expected a map of keys and values"))
            case "value_error":
                found.append(tree.problem(path, str(detail["ctx"]["error"])))
            case _:
                at = f"{path[-1]}: " if path else ""
                found.append(tree.problem(path, f"{at}{detail['msg'].lower()}, not {detail['input']!r:.60}"))
    return tuple(sorted(found, key=lambda p: (p.line, p.column)))


def _keys(data: object, path: Path) -> set[str]:
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return {str(key) for key in data} if isinstance(data, dict) else set()
