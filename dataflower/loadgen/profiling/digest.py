"""What a measured duration depends on, as one digest: the code of a function, its params, the files that it reads."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflower.config.sources import module_file, read_source
from dataflower.spec.workflow import Stage


def stage_digest(stage: Stage, roots: Sequence[Path], about: str) -> str:
    """Of a stage: its function's module and what that imports below `roots`, params, cores; `about` the machine.

    Installed packages are not looked into; their versions belong into `about`.
    """
    found = hashlib.sha256()
    shape = None if stage.batch is None else (stage.batch.max_size, stage.batch.same_shape)
    gpu = (stage.resources.gpu, stage.resources.gpu_memory_bytes)
    facts = [stage.function, _plain(dict(stage.params)), stage.resources.cpu, gpu, shape, about]
    found.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, text in sorted(sources(stage.function.partition(":")[0], roots).items()):
        found.update(f"\0{name}\0{text}".encode())
    return found.hexdigest()


def sources(module: str, roots: Sequence[Path]) -> dict[str, str]:
    """The source of a module and of all that it imports, directly or not, as far as it lies below `roots`."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = module_file(name, roots)
        if path is None or name in found:
            continue
        found[name] = read_source(path)
        waiting += _imports(found[name], name if path.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _imports(text: str, package: str) -> Iterable[str]:
    """Modules that a source may import; names that turn out to be no modules are harmless."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def file_digests(names: Iterable[str]) -> dict[str, str]:
    """Content digest of each file; a file that can't be read has none, which equals nothing."""
    found = {}
    for name in sorted(names):
        try:
            with open(name, "rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            found[name] = ""
    return found


def likeness(tasks: Sequence[Mapping[str, Any]]) -> str:
    """How large the inputs of a stage are, roughly: a duration holds for inputs that are alike."""
    sizes: dict[str, list[int]] = {}
    for task in tasks:
        for name, value in task.items():
            sizes.setdefault(name, []).append(_size(value))
    return json.dumps({name: f"{sum(found) / len(found):.1e}" for name, found in sorted(sizes.items())})


def _size(value: Any) -> int:
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_size(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_size(item) for item in value)
    return 8


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True, default=str))
