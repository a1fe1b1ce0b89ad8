"""What a server says of itself: as data, and in protobuf."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.checkpoint.protocol import Rate, Resident, Statistics
from dataflower.core.device.state import DeviceState, Sharer
from dataflower.core.device.window import Latency, Window
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway.messages import WorkflowInfo, decode_workflow
from dataflower.gateway.times import seconds_of, set_time
from dataflower.host.api import PeerState, PeerStatus, Preloaded


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself. `started_at`: wall-clock seconds."""

    version: str
    started_at: float
    workflows: tuple[WorkflowInfo, ...]
    max_message_bytes: int
    log_dir: str = ""
    """Where functions' output is written, on the server's machine; empty if nowhere."""
    peers: tuple[PeerStatus, ...] = ()
    preloaded: tuple[Preloaded, ...] = ()
    """What could be ready ahead of calls, the most valuable byte first; nothing where preloading is off."""
    weights: Statistics | None = None
    """Model weights in the host's memory; None while no function has asked for any."""
    devices: tuple[DeviceState, ...] = ()
    """Devices on which stages with weights take turns; nothing where they don't."""


def decode_server(message: pb.ServerStatusResponse) -> ServerInfo:
    """Read all of it."""
    return ServerInfo(
        version=message.version,
        started_at=seconds_of(message.started_at),
        workflows=tuple(decode_workflow(workflow) for workflow in message.workflows),
        max_message_bytes=message.max_message_bytes,
        log_dir=message.log_dir,
        peers=tuple(decode_peer(peer) for peer in message.peers),
        weights=decode_weights(message.weights) if message.HasField("weights") else None,
        preloaded=tuple(decode_preloaded(artifact) for artifact in message.preloaded),
        devices=tuple(decode_device(device) for device in message.devices),
    )


def encode_peer(status: PeerStatus, into: pb.Peer) -> None:
    """Another host into a message."""
    into.name, into.address, into.state, into.reason = status.name, status.address, status.state.value, status.reason
    into.containers, into.bytes_out, into.bytes_in = status.containers, status.bytes_out, status.bytes_in


def decode_peer(message: pb.Peer) -> PeerStatus:
    """And out of it."""
    state = PeerState(message.state)
    return PeerStatus(
        message.name,
        message.address,
        state,
        message.reason,
        message.containers,
        message.bytes_out,
        message.bytes_in,
    )


def encode_weights(held: Statistics, into: pb.WeightStore) -> None:
    """Write what the store of weights holds into a message."""
    into.cap_bytes, into.held_bytes, into.free_bytes = held.cap_bytes, held.held_bytes, held.free_bytes
    into.loads, into.hits = held.loads, held.hits
    named = [(m.name, m) for m in held.models]
    named += [(f"{m.name} on {shelf.device}", m) for shelf in held.devices for m in shelf.models]
    for name, m in named:
        into.models.add(name=name, digest=m.digest, bytes=m.nbytes, clients=m.clients, ready=m.ready, held=m.held)
    for rate in held.rates:
        into.rates.add(source=rate.source, bandwidth=rate.bandwidth, queued_bytes=rate.queued_bytes)


def decode_weights(message: pb.WeightStore) -> Statistics:
    """Read it."""
    return Statistics(
        message.cap_bytes,
        message.held_bytes,
        message.free_bytes,
        message.loads,
        message.hits,
        tuple(Resident(m.name, m.digest, m.bytes, m.clients, m.ready, m.held) for m in message.models),
        tuple(Rate(r.source, r.bandwidth, r.queued_bytes) for r in message.rates),
    )


def encode_preloaded(artifact: Preloaded, into: pb.PreloadedArtifact) -> None:
    """An artifact of preloading into its message."""
    into.name, into.kind, into.nbytes, into.value = artifact.name, artifact.kind, artifact.nbytes, artifact.value
    into.held, into.ready = artifact.held, artifact.ready
    into.users.extend(artifact.users)
    set_time(into.saved, artifact.saved_s)


def decode_preloaded(message: pb.PreloadedArtifact) -> Preloaded:
    """And back."""
    return Preloaded(
        message.name,
        message.kind,
        message.nbytes,
        seconds_of(message.saved),
        message.value,
        message.held,
        message.ready,
        tuple(message.users),
    )


def encode_device(state: DeviceState, into: pb.SharedDevice) -> None:
    """A shared device into its message."""
    into.name, into.running, into.slots, into.batches = state.name, state.running, state.slots, state.batches
    into.cap_bytes, into.used_bytes, into.offloaded = state.cap_bytes, state.used_bytes, state.offloaded
    for sharer in state.sharers:
        made = into.sharers.add(workflow=sharer.workflow, stage=sharer.stage, waiting=sharer.waiting)
        made.window_size = sharer.window.size
        set_time(made.window_wait, sharer.window.wait_s)
        set_time(made.objective, sharer.slo_s)
        if sharer.latency is not None:
            set_time(made.first, sharer.latency.first_s)
            set_time(made.more, sharer.latency.more_s)


def decode_device(message: pb.SharedDevice) -> DeviceState:
    """And back."""
    sharers = (
        Sharer(
            s.workflow,
            s.stage,
            s.waiting,
            seconds_of(s.objective),
            Latency(seconds_of(s.first), seconds_of(s.more)) if s.HasField("first") else None,
            Window(s.window_size, seconds_of(s.window_wait)),
        )
        for s in message.sharers
    )
    return DeviceState(
        message.name,
        message.slots,
        message.running,
        message.batches,
        tuple(sharers),
        message.cap_bytes,
        message.used_bytes,
        message.offloaded,
    )
