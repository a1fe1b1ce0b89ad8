"""What the file says about edges, as `Edge` and `Input`."""

from __future__ import annotations

from collections.abc import Mapping

from dataflower.spec.document import InputDocument, SourceDocument
from dataflower.spec.finding import Finding
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import Path
from dataflower.spec.workflow import INPUTS, Edge, Fanout, Input, Merge, PortRef

Ports = Mapping[str, tuple[str, ...] | None]
"""Output ports of each stage (None: nobody knows), and the workflow's inputs under `inputs`."""


def read_input(name: str, entry: str | InputDocument, ports: Ports, at: Path, findings: list[Finding]) -> Input | None:
    """An input of a stage; None if nothing of it can be used."""
    if isinstance(entry, str) or entry.merge is None:
        if isinstance(entry, InputDocument):
            lone = (key for key in ("policy", "n") if getattr(entry, key) is not None)
            findings.extend(Finding((*at, key), f"{key!r} goes with `merge`", key=True) for key in lone)
        edge = read_edge(entry, ports, at, findings)
        return None if edge is None else Input(name, (edge,))
    other = next((key for key in ("all", "each", "gather", "keyed") if getattr(entry, key) is not None), None)
    if other is not None:
        findings.append(
            Finding((*at, other), f"{other!r} and `merge` exclude each other", "put it into the list", True)
        )
    edges = [read_edge(item, ports, (*at, "merge", index), findings) for index, item in enumerate(entry.merge)]
    merge = Merge(entry.policy or "any")
    if merge is Merge.FIRST and entry.n is None:
        findings.append(Finding((*at, "policy"), "policy `first` needs `n`", "write `n: 2`"))
    if merge is not Merge.FIRST and entry.n is not None:
        findings.append(Finding((*at, "n"), "`n` goes with policy `first`", key=True))
    known = tuple(edge for edge in edges if edge is not None)
    return Input(name, known, merge, entry.n or 1) if len(known) == len(edges) else None


def read_edge(entry: str | SourceDocument, ports: Ports, at: Path, findings: list[Finding]) -> Edge | None:
    """`stage.port`, or a map with one key."""
    if isinstance(entry, str):
        source = _port_ref(entry, ports, at, findings)
        return None if source is None else Edge(source)
    given = [fanout for fanout in Fanout if getattr(entry, fanout.value) is not None]
    if len(given) != 1:
        names = ", ".join(f"`{fanout.value}`" for fanout in given) or "none"
        findings.append(Finding(at, f"an edge has exactly one of all, each, gather, keyed; here: {names}"))
        return None
    source = _port_ref(getattr(entry, given[0].value), ports, (*at, given[0].value), findings)
    return None if source is None else Edge(source, given[0])


def _port_ref(text: str, ports: Ports, at: Path, findings: list[Finding]) -> PortRef | None:
    stage, dot, port = text.rpartition(".")
    if dot and stage and port:
        return PortRef(stage, port)
    if dot:
        findings.append(Finding(at, f"{text!r} names no port", "write `stage.port`"))
        return None
    if text == INPUTS:
        findings.append(Finding(at, f"{text!r} names no input", f"known: {', '.join(ports.get(INPUTS) or ())}"))
        return None
    if text not in ports:
        own_input = text in (ports.get(INPUTS) or ())
        hint = f"did you mean '{INPUTS}.{text}'?" if own_input else did_you_mean(text, [*ports])
        findings.append(Finding(at, f"no stage {text!r}", hint))
        return None
    known = ports[text]
    if known is None:
        return None
    if len(known) != 1:
        hint = f"write one of {', '.join(f'{text}.{name}' for name in known)}" if known else ""
        findings.append(Finding(at, f"stage {text!r} has {len(known) or 'no'} outputs: say which", hint))
        return None
    return PortRef(text, known[0])
