"""YAML text as plain data, with the place of every key and value."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from dataflower.errors import Problem

Path = tuple[str | int, ...]

MAX_NODES = 200_000
"""Keys and values in a file, aliases counted each time: a few lines of them could otherwise fill the memory."""

MAX_DEPTH = 100
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "y"), True) | dict.fromkeys(("false", "no", "off", "n"), False)
"""What a file may write of which it says that it is YAML 1.1, or `!!bool`; others read all but the first as strings."""


@dataclass(frozen=True, slots=True)
class Mark:
    """1-based places of a key and of its value (list items have no key of their own)."""

    key: tuple[int, int]
    value: tuple[int, int]


@dataclass(slots=True)
class Tree:
    """A parsed file."""

    file: str
    data: Any = None
    marks: dict[Path, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, message: str, hint: str = "", *, key: bool = False) -> Problem:
        """A finding about what stands at `path`: its value, or its key. An absent path means its nearest parent."""
        at_key = key
        while path and path not in self.marks:
            shorter = (*path[:-2], path[-1]) if len(path) > 2 and path[-2] == "scaling" else None
            if shorter in self.marks:  # replica counts may stand at the stage itself
                path = shorter
                break
            path = path[:-1]
            at_key = True
        mark = self.marks.get(path)
        line, column = (mark.key if at_key else mark.value) if mark else (1, 1)
        return Problem(self.file, line, column, message, hint)


def parse(text: str, file: str, made_by: str = "`dataflower init` writes a workflow to start from") -> Tree:
    """Read YAML 1.2. What can't be read is in `Tree.problems`; `data` is None if nothing could be.

    `made_by` is the mend where the file is empty.
    """
    tree = Tree(file)
    yaml = YAML(typ="rt", pure=True)
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = " ".join(part for part in (error.problem, error.context and f"({error.context})") if part)
        hint = "indent the keys of one map alike, with spaces" if "block mapping" in what or "\\t" in what else ""
        tree.problems.append(Problem(file, line, column, f"not valid YAML: {what}", hint))
        return tree
    except (YAMLError, ValueError) as error:
        tree.problems.append(Problem(file, 1, 1, f"not valid YAML: {str(error).splitlines()[0]}"))
        return tree
    except RecursionError:
        tree.problems.append(Problem(file, 1, 1, "nested too deeply"))
        return tree
    if node is None:
        tree.problems.append(Problem(file, 1, 1, "the file is empty", made_by))
        return tree
    tree.data = _Reader(tree).read(node, ())
    return tree


class _Reader:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.count = 0

    def read(self, node: Node, path: Path) -> Any:
        self.count += 1
        if self.count > MAX_NODES or len(path) > MAX_DEPTH:
            if self.count <= MAX_NODES + 1:
                self._report(node, "too many keys and values" if self.count > MAX_NODES else "nested too deeply")
            self.count = MAX_NODES + 1
            return None
        if not path:
            self.tree.marks[path] = Mark(_place(node), _place(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.tree.marks[(*path, index)] = Mark(_place(item), _place(item))
                items.append(self.read(item, (*path, index)))
            return items
        return self._scalar(node)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in self._pairs(node):
            name = key.value if isinstance(key, ScalarNode) and str(key.tag).endswith(":str") else None
            if name is None:
                spelled = key.value if isinstance(key, ScalarNode) else "a list or map"
                self._report(key, f"keys are strings, not {spelled}", f'write "{spelled}"')
                continue
            place = (*path, name)
            if name in result:
                first = self.tree.marks[place].key[0]
                self._report(key, f"key {name!r} is given twice", f"first in line {first}")
                continue
            self.tree.marks[place] = Mark(_place(key), _place(value))
            result[name] = self.read(value, place)
        return result

    def _pairs(self, node: MappingNode) -> Iterator[tuple[Node, Node]]:
        """Own keys first, then those that `<<` merges in and that are not there yet."""
        own = {key.value for key, _ in node.value if isinstance(key, ScalarNode)}
        yield from ((key, value) for key, value in node.value if not _is_merge(key))
        merged = {id(node)}  # each map once: it may be merged into itself, or by many ways into this one
        pending = _merged(node)[::-1]
        while pending:
            source = pending.pop()
            if not isinstance(source, MappingNode):
                self._report(source, "only maps can be merged into a map", "write `<<: *name` of an `&name` on a map")
            if not isinstance(source, MappingNode) or id(source) in merged:
                continue
            merged.add(id(source))
            for key, value in source.value:
                if isinstance(key, ScalarNode) and key.value not in own and not _is_merge(key):
                    own.add(key.value)
                    yield key, value
            pending += _merged(source)[::-1]

    def _scalar(self, node: Node) -> Any:
        kind = str(node.tag).rsplit(":", 1)[-1]
        text = str(node.value)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return _BOOLEANS[text.lower()]
            if kind == "int":
                return int(text.replace("_", ""), _base(text))
            if kind == "float":
                return _float(text)
            if kind == "binary":
                return base64.b64decode(text)
        except (ValueError, KeyError, binascii.Error):
            self._report(node, f"not a valid {kind}: {text!r}")
            return None
        if kind not in ("str", "timestamp"):
            self._report(node, f"unknown tag {node.tag}")
        return text

    def _report(self, node: Node, message: str, hint: str = "") -> None:
        line, column = _place(node)
        self.tree.problems.append(Problem(self.tree.file, line, column, message, hint))


def _place(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _is_merge(node: Node) -> bool:
    return isinstance(node, ScalarNode) and str(node.tag).endswith(":merge")


def _merged(node: MappingNode) -> list[Node]:
    """What `<<` merges into a map, those whose keys count first ahead."""
    found: list[Node] = []
    for key, value in node.value:
        if _is_merge(key):
            found += value.value if isinstance(value, SequenceNode) else [value]
    return found


def _base(text: str) -> int:
    found = re.match(r"[-+]?0([xob])", text)
    return {"x": 16, "o": 8, "b": 2}[found[1]] if found else 10


def _float(text: str) -> float:
    return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
