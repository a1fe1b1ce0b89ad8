"""From YAML to `Workflow`: everything is checked, and everything that is wrong is said at once."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflower.errors import Problem, WorkflowInvalid
from dataflower.spec.check import check
from dataflower.spec.compatible import listed
from dataflower.spec.document import StageDocument, WorkflowDocument
from dataflower.spec.finding import Finding
from dataflower.spec.function import Port, Signature
from dataflower.spec.nest import Nested, inline
from dataflower.spec.profile import apply_profile, check_profiles
from dataflower.spec.reference import Ports, read_edge, read_input
from dataflower.spec.resolve import Resolved, read_ports, resolve_stage
from dataflower.spec.scopes import ScopeError, source_port
from dataflower.spec.signature import SignatureError, read_signature
from dataflower.spec.structure import read_document
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import Tree, parse
from dataflower.spec.workflow import INPUTS, Edge, Fanout, Input, Isolation, Output, Slo, Stage, Workflow

Read = Callable[[str], str | None]
FindSource = Callable[[str], tuple[str, str] | None]
Lookup = Callable[[str], Signature | None]
"""From `module:name` to its signature; None: there is no such module. May raise SignatureError."""

SEARCHED = "it is looked for beside the workflow file, in the working directory and on sys.path"

_NOT_FOR_NESTED = sorted(StageDocument.model_fields.keys() - {"workflow", "inputs", "params", "when"})
_NOT_FOR_SWITCH = StageDocument.model_fields.keys() - {"switch", "inputs", "types", "when", "function", "workflow"}


def load(
    text: str,
    *,
    file: str,
    read: Read,
    find_source: FindSource,
    profile: str | None = None,
    searched: str = SEARCHED,
) -> Workflow:
    """Read a workflow file.

    Args:
        text: the file's content.
        file: its path, for messages and for nested workflows, whose paths are relative to it.
        read: content of another file by path, None if there is none.
        find_source: path and source text of a Python module by its dotted name (not imported), None if there is none.
        profile: which of the file's `profiles` to lay over it.
        searched: where `find_source` looks, as the hint of a module that is not there.

    Raises:
        WorkflowInvalid: with every problem, in the order of the file.
    """
    return Loader(read, source_lookup(find_source), searched).load(parse(text, file), profile)


def source_lookup(find_source: FindSource) -> Lookup:
    """Signatures read from source text."""

    def lookup(function: str) -> Signature | None:
        module, _, name = function.partition(":")
        found = find_source(module)
        return None if found is None else read_signature(found[1], found[0], name)

    return lookup


@dataclass(slots=True)
class _Draft:
    """A file that has been read. `origins`: stage -> the file it stands in, and its name there."""

    workflow: Workflow
    origins: dict[str, tuple[Tree, str]]
    problems: list[Problem]
    vague: set[str] = field(default_factory=set)


class Loader:
    """One load: the file and the nested ones."""

    def __init__(self, read: Read, lookup: Lookup, searched: str = SEARCHED) -> None:
        self._read = read
        self._lookup = lookup
        self.searched = searched

    def load(self, tree: Tree, profile: str | None = None) -> Workflow:
        """The workflow in a parsed file; raises WorkflowInvalid."""
        draft = self._draft(tree, profile, ())
        if draft is None or draft.problems:
            problems = set(draft.problems if draft else tree.problems)
            raise WorkflowInvalid(
                tuple(sorted(problems, key=lambda p: (p.file != tree.file, p.file, p.line, p.column, p.message)))
            )
        return draft.workflow

    def _draft(self, tree: Tree, profile: str | None, chain: tuple[str, ...]) -> _Draft | None:
        if profile is not None:
            apply_profile(tree, profile, required=not chain)
        document, blamed = read_document(tree)
        if document is None:
            return None
        draft = _FileReader(self, tree, document, set(blamed), (*chain, posixpath.normpath(tree.file))).draft(profile)
        findings = check(draft.workflow, frozenset(draft.vague))
        draft.problems += [_locate(finding, tree, draft.origins) for finding in findings]
        if not draft.problems:
            draft.workflow = complete(draft.workflow)
        return draft

    def nested(self, path: str, profile: str | None, chain: tuple[str, ...]) -> _Draft | list[Problem] | str:
        """The draft of a nested file, its problems, or why there is none."""
        if path in chain:
            return f"the files contain each other: {' -> '.join((*chain[chain.index(path) :], path))}"
        text = self._read(path)
        if text is None:
            return f"no file {path!r}"
        tree = parse(text, path)
        draft = self._draft(tree, profile, chain)
        if draft is None:
            return tree.problems
        return draft.problems or draft

    def signature(self, function: str) -> Signature | None:
        """Of `module:name`; raises SignatureError."""
        return self._lookup(function)


class _FileReader:
    def __init__(
        self, loader: Loader, tree: Tree, document: WorkflowDocument, vague: set[str], chain: tuple[str, ...]
    ) -> None:
        self.loader = loader
        self.tree = tree
        self.document = document
        self.chain = chain
        self.vague = vague
        self.findings: list[Finding] = []
        self.foreign: list[Problem] = []
        self.stages: dict[str, Resolved] = {}
        self.nested: dict[str, Nested] = {}
        self.origins: dict[str, tuple[Tree, str]] = {}

    def draft(self, profile: str | None) -> _Draft:
        document = self.document
        inputs = read_ports(document.inputs, (INPUTS,), self.findings)
        self.findings += check_profiles(document)
        for name, stage in document.stages.items():
            if stage.workflow is not None:
                self._nest(name, stage, stage.workflow, profile)
            else:
                self.stages[name] = self._resolve(name, stage)
                self.findings += self.stages[name].findings
        ports: dict[str, tuple[str, ...] | None] = {INPUTS: tuple(port.name for port in inputs)}
        for name in document.stages:
            ports[name] = self._outputs(name)
        connected = {name: self._connect(name, resolved, ports) for name, resolved in self.stages.items()}
        outputs = []
        for name, entry in document.outputs.items():
            edge = read_edge(entry, ports, ("outputs", name), self.findings)
            if edge is not None:
                outputs.append(Output(name, edge))
        workflow = Workflow(
            name=document.metadata.name,
            stages=connected,
            inputs=inputs,
            outputs=tuple(outputs),
            slo=Slo(**document.slo.model_dump()) if document.slo else None,
            deadline_s=document.deadline_s,
            description=document.metadata.description,
            labels=dict(document.metadata.labels),
            owner=document.metadata.owner or "",
        )
        return self._finish(workflow)

    def _finish(self, workflow: Workflow) -> _Draft:
        for name, nested in self.nested.items():
            nested.inputs = self._inputs(name, self.document.stages[name], self._all_outputs())
        order = tuple(self.document.stages)
        workflow, findings = inline(workflow, self.nested, order)
        self.findings += findings
        self.vague |= {str(f.path[1]) for f in findings if f.path[:1] == ("stages",)}
        for name in self.stages:
            self.origins[name] = (self.tree, name)
        stages = {name: self._with_ports(workflow, stage) for name, stage in workflow.stages.items()}
        for name in order:  # those of nested files that could not be read stay known by name
            if name not in self.stages and name not in self.nested:
                stages[name] = Stage(name)
        if self.document.isolation is not None:
            isolation = Isolation(self.document.isolation)
            for name, stage in stages.items():
                if stage.isolation is None and not stage.is_switch:
                    stages[name] = dataclasses.replace(stage, isolation=isolation)
        workflow = dataclasses.replace(workflow, stages=stages)
        located = [_locate(finding, self.tree, self.origins) for finding in self.findings]
        vague = self.vague | {name for name in order if self._outputs(name) is None}
        return _Draft(workflow, self.origins, [*self.tree.problems, *located, *self.foreign], vague)

    def _resolve(self, name: str, document: StageDocument) -> Resolved:
        signature = None
        if document.function is not None:
            if document.switch is not None:
                self._blame(
                    name, Finding(("stages", name, "switch"), "a stage is either a function or a switch", key=True)
                )
            signature = self._signature(name, document, document.function)
        elif document.switch is None and name not in self.vague:
            hint = "write `function: module:name`"
            self._blame(
                name, Finding(("stages", name), f"stage {name!r} has no function, switch or workflow", hint, True)
            )
        for key in sorted(document.model_fields_set & _NOT_FOR_SWITCH) if document.switch is not None else ():
            hint = "the host itself decides it, without a task"
            if key in ("retry", "catch"):
                hint = (
                    "a condition that can't be evaluated fails the invocation; guard it: `has(x.score) && x.score > 1`"
                )
            self._blame(name, Finding(("stages", name, key), f"{key!r} does not go with `switch`", hint, True))
        if document.switch is not None and not document.switch:
            self._blame(name, Finding(("stages", name, "switch"), "a switch needs cases", "`urgent: score > 0.8`"))
        return resolve_stage(name, document, signature)

    def _signature(self, name: str, document: StageDocument, function: str) -> Signature | None:
        at = ("stages", name, "function")
        module, colon, attribute = function.partition(":")
        if not colon or not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            self._blame(
                name,
                Finding(at, f"{function!r} is not a function", "write `module:name`, as in `functions.video:decode`"),
            )
            return None
        try:
            signature = self.loader.signature(function)
        except SignatureError as error:
            self._blame(name, Finding(at, error.message, error.hint))
            return None
        if signature is None and document.outputs is None:
            self._blame(name, Finding(at, f"no module {module!r}", self.loader.searched))
        return signature

    def _nest(self, name: str, document: StageDocument, path: str, profile: str | None) -> None:
        for key in sorted(document.model_fields_set & set(_NOT_FOR_NESTED)):
            message = f"{key!r} does not go with `workflow`"
            self.findings.append(
                Finding(("stages", name, key), message, "set it on the stages of the nested file", True)
            )
        own = posixpath.normpath(posixpath.join(posixpath.dirname(self.tree.file), path))
        found = self.loader.nested(own, profile, self.chain)
        if isinstance(found, str):
            self._blame(name, Finding(("stages", name, "workflow"), found))
        elif isinstance(found, list):
            self.vague.add(name)
            self.foreign += found
        else:
            when = resolve_stage(name, document, None).stage.when
            self.nested[name] = Nested(found.workflow, params=document.params or {}, when=when)
            for inner, (tree, local) in found.origins.items():
                self.origins[f"{name}/{inner}"] = (tree, local)

    def _outputs(self, name: str) -> tuple[str, ...] | None:
        if name in self.nested:
            return tuple(output.name for output in self.nested[name].workflow.outputs)
        if name not in self.stages or name in self.vague:
            return None
        return tuple(port.name for port in self.stages[name].stage.outputs)

    def _all_outputs(self) -> Ports:
        inputs = tuple(self.document.inputs)
        return {INPUTS: inputs, **{name: self._outputs(name) for name in self.document.stages}}

    def _inputs(self, name: str, document: StageDocument, ports: Ports) -> dict[str, Input]:
        found = {}
        for given, entry in document.inputs.items():
            read = read_input(given, entry, ports, ("stages", name, "inputs", given), self.findings)
            if read is not None:
                found[given] = read
        return found

    def _connect(self, name: str, resolved: Resolved, ports: Ports) -> Stage:
        stage = resolved.stage
        document = self.document.stages[name]
        inputs = self._inputs(name, document, ports)
        known = {port.name for port in stage.input_ports}
        if not resolved.open_inputs:
            for extra in [extra for extra in document.inputs if extra not in known]:
                message = f"{stage.function} has no input {extra!r}"
                self.findings.append(
                    Finding(
                        ("stages", name, "inputs", extra),
                        message,
                        did_you_mean(extra, known, none="it takes none"),
                        True,
                    )
                )
                inputs.pop(extra, None)
        if len(inputs) < len(document.inputs):
            self.vague.add(name)  # an input was left out because of its own finding: don't miss it
        return dataclasses.replace(stage, inputs=tuple(inputs.values()))

    def _with_ports(self, workflow: Workflow, stage: Stage) -> Stage:
        """Inputs that no signature names get a port: a stream if a whole stream comes in."""
        known = {port.name for port in stage.input_ports}
        extra = [
            Port(given.name, stream=not stage.is_switch and _brings_stream(workflow, given))
            for given in stage.inputs
            if given.name not in known
        ]
        return dataclasses.replace(stage, input_ports=(*stage.input_ports, *extra)) if extra else stage

    def _blame(self, name: str, finding: Finding) -> None:
        self.findings.append(finding)
        self.vague.add(name)


def complete(workflow: Workflow) -> Workflow:
    """With the types of its outputs, which follow from the ports that they read."""
    return dataclasses.replace(
        workflow, outputs=tuple(dataclasses.replace(o, type_=_output_port(workflow, o)) for o in workflow.outputs)
    )


def _output_port(workflow: Workflow, output: Output) -> Port:
    source = source_port(workflow, output.edge)
    if output.edge.fanout is Fanout.GATHER:
        return Port(output.name, listed(source.type))
    return Port(output.name, source.type, source.stream)


def _brings_stream(workflow: Workflow, given: Input) -> bool:
    return given.merge is None and all(_is_stream(workflow, edge) for edge in given.edges)


def _is_stream(workflow: Workflow, edge: Edge) -> bool:
    try:
        return edge.fanout is Fanout.ALL and source_port(workflow, edge).stream
    except ScopeError:
        return False


def _locate(finding: Finding, tree: Tree, origins: Mapping[str, tuple[Tree, str]]) -> Problem:
    path: tuple[Any, ...] = finding.path
    if len(path) > 1 and path[0] == "stages":
        tree, local = origins.get(str(path[1]), (tree, str(path[1])))
        path = ("stages", local, *path[2:])
    return tree.problem(path, finding.message, finding.hint, key=finding.key)
