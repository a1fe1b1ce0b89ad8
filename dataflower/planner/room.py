"""Whether a host has what a plan asks for: what is refused can be mended, what is cut down breaks its word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from dataflower.errors import Problem
from dataflower.planner.document import PlanDocument, StageDocument
from dataflower.planner.measured import kind_of
from dataflower.planner.reading import DocumentInvalid
from dataflower.spec.workflow import Resources, Workflow


@dataclass(frozen=True, slots=True)
class Need:
    """What a container of a stage needs, as far as the workflow says: cores while it runs, memory in bytes."""

    cpus: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What a host has for one more plan.

    Attributes:
        containers: most that it runs.
        kept: of them, those that other workflows keep warm.
        away: stages that run on other hosts: what these are and have is not known here.
        devices: kinds of machine that it is, by the names of price files.
        cpus: cores.
        memory_bytes: of the machine.
        needs: by stage, what containers of the workflow that is planned need, where it is not at hand.
        kept_cpus: of the cores, those that the plans of other workflows keep busy, as far as their stages say.
        kept_bytes: of the memory, what those may take.
    """

    containers: int
    devices: tuple[str, ...]
    cpus: float
    memory_bytes: int
    kept: int = 0
    away: frozenset[str] = frozenset()
    needs: Mapping[str, Need] = field(default_factory=dict)
    kept_cpus: float = 0.0
    kept_bytes: int = 0

    def allows(self, stage: str, device: str) -> bool:
        """Whether a stage may run on this kind of device, or on some cores of it."""
        return stage in self.away or device in self.devices or kind_of(device) in self.devices


def kept_by(stage: StageDocument) -> int:
    """Containers that a stage keeps: one of its own even where the plan has it share a machine."""
    return sum(group.replicas for group in stage.groups) or 1


def check_room(document: PlanDocument, workflow: Workflow | None, room: Room, file: str) -> None:
    """Refuse a plan that this host can't carry out. `workflow`: says what its stages need; None for `room.needs`.

    Raises:
        DocumentInvalid: a kind of device that the host is not, or more containers, declared cores or declared memory
            than it has beside the plans of other workflows.
    """
    needs = room.needs if workflow is None else needs_of(workflow)
    found = [*_devices(document, room), *_containers(document, room), *_declared(document, needs, room)]
    if found:
        raise DocumentInvalid(tuple(Problem(file, 1, 1, message, hint) for message, hint in found))


def _devices(document: PlanDocument, room: Room) -> Iterator[tuple[str, str]]:
    known = ", ".join(room.devices)
    for name, stage in document.stages.items():
        for device in dict.fromkeys(group.device for group in stage.groups if not room.allows(name, group.device)):
            message = f"stage {name!r} is planned on {device!r}, which this host does not have: it has {known}"
            yield message, f"plan with --device {room.devices[0]}, or name this machine's kinds in `devices`"


def _containers(document: PlanDocument, room: Room) -> Iterator[tuple[str, str]]:
    counts = {name: kept_by(stage) for name, stage in document.stages.items()}
    total = sum(counts.values())
    if total + room.kept <= room.containers:
        return
    most = max(counts, key=lambda name: counts[name])
    others = f", and other workflows keep {room.kept}" if room.kept else ""
    message = f"the plan keeps {total} containers ({counts[most]} of them for stage {most!r}){others}"
    yield f"{message}: this host runs at most {room.containers}", "plan for a lower rate, or raise `max_containers`"


def needs_of(workflow: Workflow) -> dict[str, Need]:
    """What stages say that they need: nobody knows it of the others, which may do nothing but wait."""
    found = {}
    for name, stage in workflow.stages.items():
        resources = stage.resources
        cpus = None if resources.cpu == Resources().cpu else resources.cpu
        if cpus is not None or resources.memory_bytes is not None:
            found[name] = Need(cpus, resources.memory_bytes)
    return found


def taken(
    document: PlanDocument, needs: Mapping[str, Need], away: Set[str] = frozenset()
) -> tuple[dict[str, float], dict[str, int]]:
    """Cores that a plan keeps busy, and bytes that its containers may take, by stage that says what it needs."""
    cores: dict[str, float] = {}
    memory: dict[str, int] = {}
    for name, stage in document.stages.items():
        need = needs.get(name)
        if need is None or name in away:
            continue
        if need.cpus is not None:
            cores[name] = sum(g.rate_per_s * g.duration_ms / 1000 / g.batch for g in stage.groups) * need.cpus
        if need.memory_bytes is not None:
            memory[name] = kept_by(stage) * need.memory_bytes
    return cores, memory


def _declared(document: PlanDocument, needs: Mapping[str, Need], room: Room) -> Iterator[tuple[str, str]]:
    cores, memory = taken(document, needs, room.away)
    if cores and sum(cores.values()) + room.kept_cpus > room.cpus * (1 + 1e-6):
        most = max(cores, key=lambda name: cores[name])
        message = f"the plan keeps {sum(cores.values()):.3g} cores busy ({cores[most]:.3g} of them with stage {most!r})"
        others = f", and other workflows' plans {room.kept_cpus:.3g}" if room.kept_cpus else ""
        hint = f"plan for a lower rate, or lower `resources.cpu` of {most!r}"
        yield f"{message}{others}: this host has {room.cpus:g}", hint
    if memory and sum(memory.values()) + room.kept_bytes > room.memory_bytes:
        most = max(memory, key=lambda name: memory[name])
        total, own, kept, all_ = (
            f"{n / 2**30:.3g} GiB" for n in (sum(memory.values()), memory[most], room.kept_bytes, room.memory_bytes)
        )
        message = f"the plan's containers may take {total} of memory ({own} of it for stage {most!r})"
        others = f", and those of other workflows' plans {kept}" if room.kept_bytes else ""
        hint = f"plan for a lower rate, or lower `resources.memory` of {most!r}"
        yield f"{message}{others}: this host has {all_}", hint
