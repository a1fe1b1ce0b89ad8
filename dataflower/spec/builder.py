"""A workflow written in Python instead of YAML; both give the same `Workflow`.

w = Builder("video")
decode = w.stage("decode", "functions.video:decode", path=w.input("video", "string"))
detect = w.stage("detect", Detect, frame=each(decode.frame))
w.output("objects", gather(detect.objects))
workflow = w.build()
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataflower.spec import dump
from dataflower.spec.function import Port, PortType, Signature, Stream
from dataflower.spec.load import Loader
from dataflower.spec.signature import SignatureError, inspect_signature
from dataflower.spec.tree import Mark, Path, Tree
from dataflower.spec.workflow import (
    API_VERSION,
    INPUTS,
    Batch,
    Catch,
    Credit,
    Isolation,
    Resources,
    Retry,
    Scaling,
    Slo,
    Workflow,
)

_NO_DEFAULT: Any = object()
PortTypes = Mapping[str, PortType | Stream[Any]]


@dataclass(frozen=True, slots=True)
class PortHandle:
    """`stage.port`, or `switch.case`."""

    stage: str
    port: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.port}"


class StageHandle:
    """A stage; its attributes are its output ports, those of a switch its cases. Itself: its only port."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, port: str) -> PortHandle:
        if port.startswith("__"):
            raise AttributeError(port)
        return PortHandle(self._name, port)

    def __getitem__(self, port: str) -> PortHandle:
        return PortHandle(self._name, port)

    def __str__(self) -> str:
        return self._name


@dataclass(frozen=True, slots=True)
class EdgeHandle:
    """An edge that is more than a name."""

    entry: Mapping[str, Any]


Source = PortHandle | StageHandle | EdgeHandle | str


def each(source: PortHandle | StageHandle | str) -> EdgeHandle:
    """One task per item of a stream."""
    return EdgeHandle({"each": str(source)})


def gather(source: PortHandle | StageHandle | str) -> EdgeHandle:
    """The items of the innermost fan-out put together again, in order."""
    return EdgeHandle({"gather": str(source)})


def keyed(source: PortHandle | StageHandle | str) -> EdgeHandle:
    """One task per distinct key of the items `{"key", "value"}`."""
    return EdgeHandle({"keyed": str(source)})


def merge(*sources: Source, policy: str = "any", n: int | None = None) -> EdgeHandle:
    """Several edges into one input; `policy` is `any`, `all`, or `first` with `n`."""
    entry: dict[str, Any] = {"merge": [_source(source) for source in sources], "policy": policy}
    return EdgeHandle(entry if n is None else {**entry, "n": n})


class Builder:
    """Collects stages; `build` checks them all. Problems name the line of the call that they are about."""

    def __init__(
        self,
        name: str,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        slo: Slo | None = None,
        deadline_s: float | None = None,
    ) -> None:
        frame = sys._getframe(1)
        self._tree = Tree(frame.f_code.co_filename)
        self._mark((), frame.f_lineno)
        self._signatures: dict[str, Signature | SignatureError] = {}
        self._files: dict[str, str] = {}
        metadata: dict[str, Any] = {"name": name, "description": description, "labels": dict(labels or {})}
        if owner:
            metadata["owner"] = owner
        self._document: dict[str, Any] = {"apiVersion": API_VERSION, "kind": "Workflow", "metadata": metadata}
        self._document.update(inputs={}, stages={}, outputs={})
        if slo is not None:
            self._document["slo"] = dump.slo_entry(slo)
        if deadline_s is not None:
            self._document["deadline_s"] = deadline_s

    def input(
        self, name: str, type: PortType | str | None = None, *, stream: bool = False, default: Any = _NO_DEFAULT
    ) -> PortHandle:
        """Declare an input of the workflow; `type` is a `PortType` or a kind such as `string`."""
        optional = default is not _NO_DEFAULT
        if isinstance(type, str):
            entry: Any = {"type": type, "stream": stream, **({"default": default} if optional else {})}
        else:
            port = Port(name, type or PortType(), stream, optional, default if optional else None)
            entry = dump.port_entry(port)
        self._put("inputs", name, entry, sys._getframe(1).f_lineno)
        return PortHandle(INPUTS, name)

    def stage(
        self,
        name: str,
        function: Any,
        /,
        *,
        inputs: Mapping[str, Source] | None = None,
        params: Mapping[str, Any] | None = None,
        model: str = "",
        adapter: str = "",
        types: PortTypes | None = None,
        outputs: PortTypes | None = None,
        when: PortHandle | str | Sequence[PortHandle | str] | None = None,
        retry: Retry | None = None,
        catch: Sequence[Catch] = (),
        timeout_s: float | None = None,
        resources: Resources | None = None,
        scaling: Scaling | None = None,
        credit: Credit | None = None,
        batch: Batch | None = None,
        preload: Sequence[str] = (),
        isolation: Isolation | None = None,
        network: bool = False,
        start_timeout_s: float | None = None,
        **edges: Source,
    ) -> StageHandle:
        """Add a stage. `function`: the function or class itself, or `module:name`.

        Inputs are keyword arguments, or in `inputs` if their names collide with an option; constants go into `params`.
        """
        given = {**(inputs or {}), **edges}
        entry: dict[str, Any] = {"function": self._function(function)}
        optional = {
            "inputs": {port: _source(source) for port, source in given.items()},
            "params": dict(params or {}),
            "model": model,
            "adapter": adapter,
            "types": _ports(types),
            "when": _cases(when),
            "retry": dump.retry_entry(retry) if retry else None,
            "catch": [dump.catch_entry(one) for one in catch],
            "timeout_s": timeout_s,
            "resources": dump.resources_entry(resources) if resources else None,
            "scaling": dump.scaling_entry(scaling) if scaling else None,
            "credit": dump.credit_entry(credit) if credit else None,
            "batch": dump.batch_entry(batch),
            "preload": list(preload),
            "isolation": isolation.value if isolation else None,
            "network": network,
            "start_timeout_s": start_timeout_s,
        }
        entry.update((key, value) for key, value in optional.items() if value)
        if outputs is not None:
            entry["outputs"] = _ports(outputs)
        self._put("stages", name, entry, sys._getframe(1).f_lineno)
        return StageHandle(name)

    def switch(
        self, name: str, cases: Mapping[str, str | None], /, *, when: PortHandle | str | None = None, **edges: Source
    ) -> StageHandle:
        """Add a switch: case name -> CEL condition over the inputs, None for the default."""
        entry: dict[str, Any] = {
            "switch": {case: "default" if text is None else text for case, text in cases.items()},
            "inputs": {port: _source(source) for port, source in edges.items()},
        }
        if when is not None:
            entry["when"] = _cases(when)
        self._put("stages", name, entry, sys._getframe(1).f_lineno)
        return StageHandle(name)

    def nest(
        self, name: str, workflow: Workflow, /, *, params: Mapping[str, Any] | None = None, **edges: Source
    ) -> StageHandle:
        """Put another workflow in; its outputs are the ports of the result. `params`: constants for its inputs."""
        file = f"{name}.yaml"
        self._files[file] = dump.dump(workflow)
        inputs = {port: _source(source) for port, source in edges.items()}
        entry: dict[str, Any] = {"workflow": f"/{file}", "inputs": inputs}
        if params:
            entry["params"] = dict(params)
        self._put("stages", name, entry, sys._getframe(1).f_lineno)
        return StageHandle(name)

    def output(self, name: str, source: Source, /) -> None:
        """Declare a result."""
        self._put("outputs", name, _source(source), sys._getframe(1).f_lineno)

    def build(self) -> Workflow:
        """The workflow; may be called again after more was added.

        Raises:
            WorkflowInvalid: with every problem.
        """
        tree = Tree(self._tree.file, self._document, dict(self._tree.marks), list(self._tree.problems))
        return Loader(lambda path: self._files.get(path.lstrip("/")), self._lookup).load(tree)

    def _function(self, function: Any) -> str:
        if isinstance(function, str):
            return function
        module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", "?")
        text = f"{module}:{name}"
        try:
            if not name.isidentifier() or module == "__main__":
                where = "the main script" if module == "__main__" else "another function or a class"
                message = f"{name} is defined in {where}, where no container can import it"
                raise SignatureError(message, "define it at the top of a module")
            self._signatures[text] = inspect_signature(function)
        except SignatureError as error:
            text = text if name.isidentifier() else f"{module}:{name.rpartition('.')[2]}"
            self._signatures[text] = error
        return text

    def _lookup(self, function: str) -> Signature | None:
        found = self._signatures.get(function)
        if isinstance(found, SignatureError):
            raise found
        if found is not None:
            return found
        module, _, name = function.partition(":")
        try:
            target = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:
            return None
        except ImportError as error:
            raise SignatureError(f"{module} can't be imported: {error}") from error
        if target is None:
            raise SignatureError(f"{module} has no {name!r}")
        return inspect_signature(target) if not inspect.ismodule(target) else None

    def _put(self, section: str, name: str, entry: Any, line: int) -> None:
        if name in self._document[section]:
            self._mark((section, name), line)
            self._tree.problems.append(self._tree.problem((section, name), f"{name!r} is defined twice"))
            return
        self._document[section][name] = entry
        self._mark((section, name), line)

    def _mark(self, path: Path, line: int) -> None:
        self._tree.marks[path] = Mark((line, 1), (line, 1))


def _source(source: Source) -> Any:
    if isinstance(source, EdgeHandle):
        return dict(source.entry)
    if isinstance(source, PortHandle | StageHandle | str):
        return str(source)
    raise TypeError(f"{source!r} is not an edge; constants go into params=")


def _cases(when: PortHandle | str | Sequence[PortHandle | str] | None) -> Any:
    if when is None or isinstance(when, PortHandle | str):
        return None if when is None else str(when)
    return [str(case) for case in when]


def _ports(types: PortTypes | None) -> dict[str, Any]:
    return {
        name: dump.port_entry(
            Port(name, type_.item, True) if isinstance(type_, Stream) else Port(name, type_),
        )
        for name, type_ in (types or {}).items()
    }
