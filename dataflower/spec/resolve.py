"""A stage of the file and the signature of its function, laid together: a `Stage`, its edges aside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflower.errors import InvalidArgument
from dataflower.spec.document import (
    ALIASES,
    BATCH_ALIASES,
    BatchDocument,
    PortDocument,
    PortEntry,
    ScalingDocument,
    StageDocument,
    TuningDocument,
)
from dataflower.spec.finding import Finding
from dataflower.spec.function import DTYPES, Kind, Port, PortType, Signature
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import Path
from dataflower.spec.values import check_value
from dataflower.spec.workflow import Batch, Case, CaseRef, Catch, Credit, Isolation, Resources, Retry, Scaling, Stage

_NUMPY_NAMES = {numpy: name for name, numpy in DTYPES.items()}


@dataclass(slots=True)
class Resolved:
    """`stage` has no inputs yet; `open_inputs`: inputs without a port are fine and get one."""

    stage: Stage
    open_inputs: bool
    findings: list[Finding] = field(default_factory=list)


def resolve_stage(name: str, document: StageDocument, signature: Signature | None) -> Resolved:
    """`signature` None: a switch, or a function of which only the file tells."""
    at: Path = ("stages", name)
    findings: list[Finding] = []
    input_ports = _lay_over(signature.inputs if signature else (), document.types, (*at, "types"), findings)
    if signature and not signature.takes_any_input:
        known = [port.name for port in signature.inputs]
        findings += [
            Finding(
                (*at, "types", extra), f"{document.function} has no input {extra!r}", did_you_mean(extra, known), True
            )
            for extra in document.types
            if extra not in known
        ]
    findings += _params(at, document, signature)
    findings += _sharing(at, document, signature)
    preload = (*(signature.preload if signature else ()), *(document.preload or ()))
    stage = Stage(
        name=name,
        function=document.function or "",
        cases=tuple(Case(case, None if when == "default" else when) for case, when in (document.switch or {}).items()),
        params=_given(document),
        model=document.model or "",
        adapter=document.adapter or "",
        input_ports=input_ports,
        outputs=_outputs(document, signature, (*at, "outputs"), findings),
        when=_when(at, document, findings),
        retry=_retry(document),
        catch=_catch(at, document, findings),
        timeout_s=document.timeout_s,
        resources=_resources(document),
        scaling=_scaling(at, document, findings),
        credit=Credit(document.credit.items, document.credit.bytes) if document.credit else Credit(),
        batch=_batch(at, document, signature, findings),
        preload=tuple(dict.fromkeys(preload)),
        isolation=Isolation(document.isolation) if document.isolation else None,
        network=bool(document.network),
        start_timeout_s=document.start_timeout_s,
    )
    open_inputs = signature is None or signature.takes_any_input
    return Resolved(stage, open_inputs, findings)


def read_ports(entries: Mapping[str, PortEntry], at: Path, findings: list[Finding]) -> tuple[Port, ...]:
    """Ports that the file alone describes."""
    return _lay_over((), entries, at, findings)


def _lay_over(
    base: Iterable[Port], entries: Mapping[str, PortEntry], at: Path, findings: list[Finding]
) -> tuple[Port, ...]:
    ports = {port.name: port for port in base}
    for name, entry in entries.items():
        ports[name] = _port(ports.get(name), name, entry, (*at, name), findings)
    return tuple(ports.values())


def _port(base: Port | None, name: str, entry: PortEntry, at: Path, findings: list[Finding]) -> Port:
    document = PortDocument.model_validate({"type": entry}) if isinstance(entry, str) else entry
    own = base or Port(name)
    findings.extend(
        Finding((*at, flag), f"the function itself says that {name!r} is {flag}", f"drop `{flag}`")
        for flag in ("stream", "optional")
        if getattr(document, flag) is False and getattr(own, flag)
    )
    given = document.model_fields_set
    port = Port(
        name,
        _type(document, at, findings) if given & {"type", "dtype", "shape"} else own.type,
        own.stream or bool(document.stream),
        own.optional or bool(document.optional) or "default" in given,
        document.default if "default" in given else own.default,
    )
    if "default" in given and not _fits(port, port.default):
        findings.append(Finding((*at, "default"), f"the default of {name!r} is no {port.type}: {port.default!r}"))
    return port


def _type(document: PortDocument, at: Path, findings: list[Finding]) -> PortType:
    is_tensor = document.type == "tensor" or (document.type is None and (document.dtype or document.shape is not None))
    if not is_tensor:
        given = (key for key in ("dtype", "shape") if getattr(document, key) is not None)
        findings.extend(Finding((*at, key), f"{key} goes with tensors, not with type {document.type}") for key in given)
        return PortType(Kind(document.type or "any"))
    dtype = document.dtype or ""
    dtype = _NUMPY_NAMES.get(dtype, dtype)
    if dtype and dtype not in DTYPES:
        hint = did_you_mean(dtype, [*DTYPES, *_NUMPY_NAMES], f"known: {', '.join(DTYPES)}")
        findings.append(Finding((*at, "dtype"), f"unknown dtype {document.dtype!r}", hint))
        dtype = ""
    return PortType(Kind.TENSOR, dtype, None if document.shape is None else tuple(document.shape))


def _outputs(
    document: StageDocument, signature: Signature | None, at: Path, findings: list[Finding]
) -> tuple[Port, ...]:
    """The function's ports with the file's laid over. A lone undeclared `out` makes room for what the file names."""
    base = signature.outputs if signature else ()
    if document.outputs is None:
        return base
    is_generator = bool(base) and all(port.stream for port in base)
    if [port.name for port in base] == ["out"] and document.outputs and "out" not in document.outputs:
        base = ()
    ports = _lay_over(base, document.outputs, at, findings)
    if is_generator and not any(port.stream for port in ports):
        return tuple(Port(port.name, port.type, True, port.optional, port.default) for port in ports)
    return ports


def _given(document: StageDocument) -> dict[str, Any]:
    """`params`, with what has a key of its own."""
    own = {"model": document.model, "adapter": document.adapter}
    return {**(document.params or {}), **{name: value for name, value in own.items() if value is not None}}


def _params(at: Path, document: StageDocument, signature: Signature | None) -> list[Finding]:
    twice = [
        Finding((*at, "params", name), f"{name!r} is given twice", f"drop it: `{name}:` of the stage says it", True)
        for name in ("model", "adapter")
        if getattr(document, name) is not None and name in (document.params or {})
    ]
    return twice + _misfits(at, document, signature)


def _sharing(at: Path, document: StageDocument, signature: Signature | None) -> list[Finding]:
    """Whether a stage that says so can share its container: weights in common, and tasks that know their stage."""
    if document.isolation != "shared":
        return []
    found = []
    if document.model is None:
        message = "`isolation: shared` is for stages that name their weights"
        hint = "write `model: ...` beside it: stages with the same weights share a container"
        found.append(Finding((*at, "isolation"), message, hint))
    if signature is None:
        return found
    if signature.batch or document.batch is not None:
        message = "`isolation: shared` does not go with batches that the engine makes: the function makes its own"
        found.append(Finding((*at, "isolation"), message, "drop one of them"))
    elif not (signature.stateful and signature.context):
        message = f"{document.function} can't tell apart the tasks of the stages that would share it"
        hint = "a class with `setup`, whose `__call__` takes `context`: `context.adapter` is that of the task's stage"
        found.append(Finding((*at, "isolation"), message, hint))
    return found


def _misfits(at: Path, document: StageDocument, signature: Signature | None) -> list[Finding]:
    """Params that `setup`, or a stateless function, does not take; or lacks; or takes with another type."""
    if signature is None:
        return []
    given = _given(document)
    if document.isolation == "shared":
        given.pop("adapter", None)  # a container that several stages share has none of its own
    missing = [
        Finding(
            (*at, "params") if given else at,
            f"setup of {document.function} needs {port.name!r}",
            f"write `params: {{{port.name}: ...}}`",
            key=True,
        )
        for port in signature.params
        if not port.optional and port.name not in given
    ]
    ports = {port.name: port for port in (signature.params if signature.stateful else signature.inputs)}
    mistyped = [
        Finding(_place(at, document, name), f"{name!r} of {document.function} is {ports[name].type}, not {value!r}")
        for name, value in given.items()
        if name in ports and not _fits(ports[name], value)
    ]
    twice = [
        Finding((*at, "params", name), f"input {name!r} has both an edge and a constant", "drop one of them", True)
        for name in document.params or {}
        if not signature.stateful and name in document.inputs
    ]
    takes_any = signature.takes_any_param if signature.stateful else signature.takes_any_input
    what = (
        f"setup of {document.function} has no parameter" if signature.stateful else f"{document.function} has no input"
    )
    unknown = [
        Finding(_place(at, document, name), f"{what} {name!r}", did_you_mean(name, ports), True)
        for name in given
        if name not in ports and not takes_any
    ]
    return missing + unknown + mistyped + twice


def _place(at: Path, document: StageDocument, name: str) -> Path:
    """Where a param stands: below `params`, or as a key of the stage itself."""
    return (*at, "params", name) if name in (document.params or {}) else (*at, name)


def _fits(port: Port, value: Any) -> bool:
    """Whether a constant may be what a port gets. Arrays and streams can't be told from a file's lists."""
    if port.stream or port.type.kind is Kind.TENSOR:
        return True
    try:
        check_value(port, value, {})
    except InvalidArgument:
        return False
    return True


def _when(at: Path, document: StageDocument, findings: list[Finding]) -> tuple[CaseRef, ...]:
    given = document.when or []
    cases = []
    for index, text in enumerate([given] if isinstance(given, str) else given):
        stage, dot, case = text.rpartition(".")
        if dot and stage and case:
            cases.append(CaseRef(stage, case))
        else:
            place = (*at, "when") if isinstance(given, str) else (*at, "when", index)
            findings.append(Finding(place, f"`when: {text}` names no case", "write `when: switch.case`"))
    return tuple(cases)


def _retry(document: TuningDocument) -> Retry | None:
    own = document.retry
    if own is None:
        return None
    return Retry(tuple(own.errors), own.max_attempts, own.interval_s, own.backoff_rate, own.max_delay_s, own.jitter)


def _catch(at: Path, document: StageDocument, findings: list[Finding]) -> tuple[Catch, ...]:
    catches = []
    for index, own in enumerate(document.catch):
        if (own.goto is None) == (own.output is None):
            message = "a catch has either `goto` or `output`"
            findings.append(Finding((*at, "catch", index), message, "name the stage that runs instead, or constants"))
        catches.append(Catch(tuple(own.errors), own.goto, None if own.output is None else dict(own.output)))
    return tuple(catches)


def _resources(document: TuningDocument) -> Resources:
    own = document.resources
    return Resources(own.cpu, own.memory, own.gpu, own.gpu_memory, own.bandwidth, own.host) if own else Resources()


def _batch(at: Path, document: TuningDocument, signature: Signature | None, findings: list[Finding]) -> Batch | None:
    """What the file says counts only for a function that takes batches; of one without source the file alone tells."""
    own = document.batch
    if signature is not None and not signature.batch:
        if own is not None:
            hint = "declare it with @function(batch=True): lists of values in, a list of outputs back"
            findings.append(Finding((*at, "batch"), "the function does not take batches", hint, True))
        return None
    if own is None:
        return Batch() if signature is not None else None
    given: dict[str, tuple[str, Any]] = {}
    for name in BatchDocument.model_fields:
        value = getattr(own, name)
        if value is None:
            continue
        meaning, factor = BATCH_ALIASES.get(name, (name, 1))
        if meaning in given:
            message = f"{name!r} and {given[meaning][0]!r} say the same twice"
            findings.append(Finding((*at, "batch", name), message, "keep one", True))
        given[meaning] = (name, value if factor == 1 else value * factor)
    values = {name: value for name, (_, value) in given.items()}
    for one, other in (("cost", "max_cost"), ("max_cost", "cost")):
        if one in values and other not in values:
            message = f"{one!r} goes with {other!r}: the weight of a task, and the most that a batch may weigh"
            findings.append(Finding((*at, "batch", one), message, f"add `{other}`", True))
    return Batch(**values)


def _scaling(at: Path, document: TuningDocument, findings: list[Finding]) -> Scaling:
    """From `scaling:` and from the stage itself; every value may be given once, under one of its names."""
    given: dict[str, tuple[Path, int | float]] = {}
    for part, place in ((document, at), (document.scaling, (*at, "scaling"))):
        for name in ScalingDocument.model_fields if part is not None else ():
            value = getattr(part, name)
            if value is None:
                continue
            meaning = ALIASES.get(name, name)
            for target in ("min_replicas", "max_replicas") if meaning == "num_replicas" else (meaning,):
                if target in given:
                    other = given[target][0][-1]
                    findings.append(
                        Finding((*place, name), f"{name!r} and {other!r} say the same twice", "keep one", True)
                    )
                given[target] = ((*place, name), value)
    standard = Scaling()
    values = {name: value for name, (_, value) in given.items()}
    low, high = values.get("min_replicas"), values.get("max_replicas")
    if low is not None and high is not None and low > high:
        findings.append(Finding(given["min_replicas"][0], f"min_replicas {low} is more than max_replicas {high}"))
    return Scaling(
        min_replicas=int(values.get("min_replicas", standard.min_replicas)),
        max_replicas=None if high is None else int(high),
        concurrency=int(values.get("max_ongoing_requests", standard.concurrency)),
        keep_alive_s=float(values.get("keep_alive_s", standard.keep_alive_s)),
        max_queued=int(values.get("max_queued_requests", standard.max_queued)),
    )
