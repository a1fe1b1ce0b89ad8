"""From `Workflow` to YAML in one canonical form: `load(dump(w)) == w`, with or without the functions' sources."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from dataflower.spec.function import Kind, Port
from dataflower.spec.units import show_size
from dataflower.spec.workflow import (
    API_VERSION,
    Batch,
    Catch,
    Credit,
    Edge,
    Fanout,
    Input,
    Merge,
    Resources,
    Retry,
    Scaling,
    Slo,
    Stage,
    Workflow,
)

Entry = dict[str, Any]
_FLOW_WIDTH = 100
_ORDINARY = re.compile(r"[A-Za-z_](?:[A-Za-z0-9_ ./()<>=+-]|:(?=[A-Za-z_]))*(?<! )")
_BLOCKS = frozenset({"metadata", "inputs", "stages", "outputs"})


def dump(workflow: Workflow) -> str:
    """YAML text. Nested workflows stay inlined, all port types are written out."""
    return render(document_of(workflow))


def document_of(workflow: Workflow) -> Entry:
    """The file's content as plain data."""
    document: Entry = {"apiVersion": API_VERSION, "kind": "Workflow", "metadata": {"name": workflow.name}}
    if workflow.description:
        document["metadata"]["description"] = workflow.description
    if workflow.labels:
        document["metadata"]["labels"] = dict(workflow.labels)
    if workflow.owner:
        document["metadata"]["owner"] = workflow.owner
    if workflow.slo is not None:
        document["slo"] = slo_entry(workflow.slo)
    if workflow.deadline_s is not None:
        document["deadline_s"] = number(workflow.deadline_s)
    if workflow.inputs:
        document["inputs"] = {port.name: port_entry(port) for port in workflow.inputs}
    document["stages"] = {name: stage_entry(stage) for name, stage in workflow.stages.items()}
    if workflow.outputs:
        document["outputs"] = {output.name: edge_entry(output.edge) for output in workflow.outputs}
    return document


def stage_entry(stage: Stage) -> Entry:
    """A stage as plain data; what is as usual is left out."""
    entry: Entry = {"function": stage.function} if stage.function else {}
    if stage.when:
        entry["when"] = str(stage.when[0]) if len(stage.when) == 1 else [str(case) for case in stage.when]
    if stage.inputs:
        entry["inputs"] = {given.name: input_entry(given) for given in stage.inputs}
    if stage.cases:
        entry["switch"] = {case.name: "default" if case.when is None else case.when for case in stage.cases}
    own = {key: value for key, value in (("model", stage.model), ("adapter", stage.adapter)) if value}
    entry.update(own)
    if params := {name: value for name, value in stage.params.items() if name not in own}:
        entry["params"] = params
    if stage.input_ports and tuple(Port(given.name) for given in stage.inputs) != stage.input_ports:
        entry["types"] = {port.name: port_entry(port) for port in stage.input_ports}
    if stage.function or stage.outputs:
        entry["outputs"] = {port.name: port_entry(port) for port in stage.outputs}
    if stage.retry is not None:
        entry["retry"] = retry_entry(stage.retry)
    if stage.catch:
        entry["catch"] = [catch_entry(catch) for catch in stage.catch]
    if stage.timeout_s is not None:
        entry["timeout_s"] = number(stage.timeout_s)
    for key, section in (
        ("resources", resources_entry(stage.resources)),
        ("scaling", scaling_entry(stage.scaling)),
        ("credit", credit_entry(stage.credit)),
        ("batch", batch_entry(stage.batch)),
        ("preload", list(stage.preload)),
    ):
        if section:
            entry[key] = section
    if stage.isolation is not None:
        entry["isolation"] = stage.isolation.value
    if stage.network:
        entry["network"] = True
    if stage.start_timeout_s is not None:
        entry["start_timeout_s"] = number(stage.start_timeout_s)
    return entry


def port_entry(port: Port) -> Entry | str:
    """`string`, or a map if there is more to say."""
    entry: Entry = {}
    if port.type.kind is not Kind.TENSOR or not (port.type.dtype or port.type.shape is not None):
        entry["type"] = port.type.kind.value
    if port.type.dtype:
        entry["dtype"] = port.type.dtype
    if port.type.shape is not None:
        entry["shape"] = list(port.type.shape)
    if port.stream:
        entry["stream"] = True
    if port.optional and port.default is None:
        entry["optional"] = True
    elif port.optional:
        entry["default"] = port.default
    return str(entry["type"]) if set(entry) == {"type"} else entry


def edge_entry(edge: Edge) -> Entry | str:
    """`stage.port`, or `{each: stage.port}`."""
    return str(edge.source) if edge.fanout is Fanout.ALL else {edge.fanout.value: str(edge.source)}


def input_entry(given: Input) -> Entry | str:
    """An edge, or a merge of several."""
    if given.merge is None:
        return edge_entry(given.edges[0])
    entry: Entry = {"merge": [edge_entry(edge) for edge in given.edges], "policy": given.merge.value}
    if given.merge is Merge.FIRST:
        entry["n"] = given.first
    return entry


def retry_entry(retry: Retry) -> Entry:
    """All of it: retries are worth seeing."""
    return {
        "errors": list(retry.errors),
        "max_attempts": retry.max_attempts,
        "interval_s": number(retry.interval_s),
        "backoff_rate": number(retry.backoff_rate),
        "max_delay_s": number(retry.max_delay_s),
        "jitter": retry.jitter,
    }


def catch_entry(catch: Catch) -> Entry:
    """One fallback."""
    entry: Entry = {"errors": list(catch.errors)}
    if catch.goto is not None:
        entry["goto"] = catch.goto
    if catch.output is not None:
        entry["output"] = dict(catch.output)
    return entry


def resources_entry(resources: Resources) -> Entry:
    """What differs from one core and no limits."""
    standard = Resources()
    entry: Entry = {}
    if resources.cpu != standard.cpu:
        entry["cpu"] = number(resources.cpu)
    if resources.memory_bytes is not None:
        entry["memory"] = show_size(resources.memory_bytes)
    if resources.gpu != standard.gpu:
        entry["gpu"] = resources.gpu
    if resources.gpu_memory_bytes is not None:
        entry["gpu_memory"] = show_size(resources.gpu_memory_bytes)
    if resources.bandwidth is not None:
        entry["bandwidth"] = show_size(int(resources.bandwidth))
    if resources.host:
        entry["host"] = resources.host
    return entry


def scaling_entry(scaling: Scaling) -> Entry:
    """What differs from the usual, in Ray's words."""
    names = {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "max_ongoing_requests": scaling.concurrency,
        "max_queued_requests": scaling.max_queued,
        "keep_alive_s": number(scaling.keep_alive_s),
    }
    own = Scaling()
    usual = (own.min_replicas, own.max_replicas, own.concurrency, own.max_queued, own.keep_alive_s)
    return {name: value for (name, value), other in zip(names.items(), usual, strict=True) if value != other}


def credit_entry(credit: Credit) -> Entry:
    """What differs from the usual."""
    standard = Credit()
    entry: Entry = {}
    if credit.items != standard.items:
        entry["items"] = credit.items
    if credit.bytes != standard.bytes:
        entry["bytes"] = show_size(credit.bytes)
    return entry


def batch_entry(batch: Batch | None) -> Entry:
    """`max_size` always, as it tells that the function takes batches; the rest where it differs from the usual."""
    if batch is None:
        return {}
    entry: Entry = {"max_size": batch.max_size}
    if batch.wait_ms:
        entry["wait_ms"] = number(batch.wait_ms)
    if batch.cost is not None:
        entry["cost"] = batch.cost
    if batch.max_cost is not None:
        entry["max_cost"] = number(batch.max_cost)
    if not batch.same_shape:
        entry["same_shape"] = False
    return entry


def slo_entry(slo: Slo) -> Entry:
    """The limits that are set; percentile and attainment always."""
    limits = {name: getattr(slo, name) for name in ("e2e_ms", "ttft_ms", "itl_ms", "tpot_ms")}
    entry: Entry = {name: number(value) for name, value in limits.items() if value is not None}
    return {**entry, "percentile": number(slo.percentile), "attainment": number(slo.attainment)}


def number(value: float) -> float | int:
    """60 instead of 60.0."""
    return int(value) if math.isfinite(value) and value == int(value) and abs(value) < 1e15 else value


def render(document: Mapping[str, Any]) -> str:
    """YAML text of plain data: short maps on one line, the rest in blocks."""
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 1_000_000  # never fold a string: what is written is what was meant
    yaml.allow_unicode = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    buffer = io.StringIO()
    yaml.dump(_styled(document, 0, ""), buffer)
    return buffer.getvalue()


def _quoted(text: str) -> str:
    """Anything out of the ordinary in quotes: not every plain scalar that the emitter writes can be read back."""
    return text if _ORDINARY.fullmatch(text) else DoubleQuotedScalarString(text)


def _styled(value: Any, depth: int, key: str) -> Any:
    styled: CommentedMap | CommentedSeq
    if isinstance(value, Mapping):
        styled = CommentedMap((_quoted(name), _styled(item, depth + 1, name)) for name, item in value.items())
    elif isinstance(value, list | tuple):
        styled = CommentedSeq(_styled(item, depth + 1, "") for item in value)
    else:
        return _quoted(value) if isinstance(value, str) else value
    is_stage = depth == 2 and "function" in value
    is_section = depth == 0 or (depth == 1 and key in _BLOCKS) or is_stage
    if not value or (not is_section and len(str(value)) <= _FLOW_WIDTH):
        styled.fa.set_flow_style()
    else:
        styled.fa.set_block_style()
    return styled
