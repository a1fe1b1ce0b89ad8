"""What can be set about a server and its clients, and the defaults."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataflower.checkpoint import settings as checkpoint
from dataflower.core.pressure import Pressure
from dataflower.host.settings import DefaultIsolation

DEFAULT_PORT = 8001
"""gRPC's port, as Triton's."""
DEFAULT_HTTP_PORT = 8000
"""HTTP's port, as Triton's."""
_MIB = 1024 * 1024


def _state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "dataflower"


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Config:
    """The effective configuration; composed in `config.compose` alone. Durations in seconds, sizes in bytes.

    A setting of the host or of the gateway has the name that it has there.
    """

    server: str = f"127.0.0.1:{DEFAULT_PORT}"
    """Where client verbs look for a server: `host:port`, or `unix:/path`."""
    api_key: str = ""
    """What client verbs show to a server that asks for a key."""
    tls_ca_file: Path | None = None
    """PEM certificates that client verbs trust; set, they speak TLS."""

    address: str = "127.0.0.1"
    """Interface that `serve` listens on."""
    port: int = DEFAULT_PORT
    """Port that `serve` listens on; 0 picks a free one."""
    http_port: int | None = DEFAULT_HTTP_PORT
    """Port that `serve` listens on for HTTP; 0 picks a free one, `none` does without HTTP."""
    max_message_bytes: int = 64 * _MIB
    """Longest gRPC message taken or sent, and longest HTTP body taken."""
    tls_cert_file: Path | None = None
    """PEM certificate chain of the server; with `tls_key_file`, calls must use TLS."""
    tls_key_file: Path | None = None
    api_keys: tuple[str, ...] = ()
    """If any, calls to the server must carry one."""
    admin_keys: tuple[str, ...] = ()
    """Keys that may also load and unload adapters over HTTP; without any, nobody may."""
    http_allowed_hosts: tuple[str, ...] = ()
    """Names that HTTP requests may be addressed to; `*` is any. Without any: on loopback its own, elsewhere all."""
    http_allowed_origins: tuple[str, ...] = ()
    """Web sites whose pages may call the server over HTTP; `*` is all."""
    reflection: bool = True
    """Whether tools may ask the server for the descriptors of its services."""

    state_dir: Path = field(default_factory=_state_dir)
    """Where a server keeps workflows, invocations and logs."""
    code_path: tuple[str, ...] = (".",)
    """Directories in which functions are looked up, before `sys.path`."""
    models_dir: Path = field(default_factory=checkpoint.default_directory)
    """Where models lie on disk: a folder for each, as `dataflower models` manages them."""
    models_disk_bytes: int = 0
    """Cap on that folder; the longest unused models that can be fetched again make room. 0: no cap."""
    models_memory_bytes: int = field(default_factory=checkpoint.default_memory_bytes)
    """Cap on the shared memory that holds weights; by default half of the machine's memory."""
    models_device_bytes: int = 0
    """Cap on the weights that each GPU holds for the functions of this server; 0: what the GPU has."""
    models_prefault_bytes: int = 0
    """Shared memory that a server gets ready for weights at its start: first loads are then as fast as later ones."""
    models_threads: int = 6
    """Threads that read the disk or the network for one load of weights."""
    isolation: DefaultIsolation = DefaultIsolation.AUTO
    """Of stages that don't say: `auto` (a sandbox where possible), `sandbox` (or not at all), `process`."""
    readable_paths: tuple[str, ...] = ()
    """Files and directories that sandboxed functions may read, besides Python, the code path and models."""
    writable_paths: tuple[str, ...] = ()
    """Directories that they may write to, besides a /tmp of their own."""
    pass_environment: tuple[str, ...] = ()
    """Environment variables that they see, besides harmless ones; `*` stands for anything."""
    control_groups: bool = True
    """Whether limits are also kept by control groups, where the kernel allows."""
    preload: bool = False
    """Whether libraries, weights and containers are got ready ahead of calls, for those who are called often."""
    preload_memory_bytes: int = 4096 * _MIB
    """Cap on the main memory of what is held ready."""
    preload_device_bytes: int = 4096 * _MIB
    """The same, of each device."""
    device_batches: int = 0
    """Batches of language model stages whose first tokens a device computes at a time: the others wait, ordered by how
    much time their objectives leave. 0: every stage for itself."""
    device_batch_size: int = 16
    """Most requests of a stage in such a batch."""
    device_ttft_s: float = 2.0
    """Objective for the first token of workflows that state none (`slo: {ttft_ms: ...}`)."""
    device_memory_bytes: int = 0
    """Cap on the memory of such stages, containers and weights together: idle ones make room for those that are called.
    0: none."""
    spare_containers: bool = True
    """Whether a process beside each fork server waits to become the next container: cold starts without the fork."""
    cpus: int = field(default_factory=_cpus)
    """Cores to plan with."""
    max_containers: int = 64
    devices: tuple[str, ...] = ("cpu",)
    """Kinds of machine that this host counts as, by the names of price files; plans for others are refused."""
    replan_headroom: float = 1.15
    """A plan that is made anew (`apply --replan on`) is for this multiple of the traffic."""
    replan_short_s: float = 15.0
    """Window in which more traffic than planned is noticed."""
    replan_long_s: float = 300.0
    """For so long traffic must have been less before a plan for less is made."""
    replan_per_minute: int = 2
    """Most new plans of a workflow in a minute."""
    cancel_grace_s: float = 2.0
    """How long a container may take to let go of a cancelled task before it is killed."""
    start_timeout_s: float = 300.0
    """How long a container may take to be ready, where its stage says nothing."""
    stop_grace_s: float = 5.0
    """How long a stopped container may take to leave before it is killed."""
    drain_timeout_s: float = 10.0
    """How long running invocations may go on when the server stops."""
    container_arena_bytes: int = 1024 * _MIB
    """Cap on the shared memory of one container."""
    spill_dir: Path | None = Path("/var/tmp")
    """Where containers put what their shared memory has no room for; `none`: tasks wait for room instead."""
    container_spill_bytes: int = 16384 * _MIB
    """Cap on what one container may put there; a gibibyte of the disk stays free in any case."""
    host_arena_bytes: int = 2048 * _MIB
    """Cap on the shared memory for the inputs of running invocations."""
    output_ttl_s: float = 600.0
    """How long results in shared memory wait for a caller who reads none of them."""
    max_input_bytes: int = 1024 * _MIB
    """All inputs of one invocation together, or one item of a stream input."""
    recorded_bytes: int = _MIB
    """Outputs of a synchronous invocation are kept in its record up to this size."""
    pressure: Pressure = Pressure.MEASURED
    """When a container that still sends to other hosts gets its next task: by what it has to send and how fast that
    arrives (`measured`), by DataFlower's formula (`paper`), or at once (`off`)."""
    keep_finished: int = 10_000
    """How many finished invocations stay readable."""
    keep_finished_s: float = 7 * 86400.0
    """And for how long."""
    set_aside_corrupt_journal: bool = False
    """Start with a new journal if the old one can't be read; the old file is kept beside it."""

    host_name: str = field(default_factory=socket.gethostname)
    """What this host is called among others."""
    peers: tuple[str, ...] = ()
    """Hosts that may run containers for this one: `name=host:port` each."""
    placement: tuple[str, ...] = ()
    """Which stages run on which host, over what workflows say: `workflow.stage=name` each."""
    peer_address: str = "127.0.0.1"
    """Interface on which other hosts may come in."""
    peer_port: int | None = None
    """Port for that; 0 picks a free one, none: this host runs nothing for others."""
    peer_token: str = ""
    """What hosts know each other by: the same on all of them. Whoever has it can run code here."""
    peer_tls_cert_file: Path | None = None
    """PEM certificate chain of this host; with its key (and an authority), connections between hosts use TLS."""
    peer_tls_key_file: Path | None = None
    peer_tls_ca_file: Path | None = None
    """PEM certificates of the authority that the hosts' certificates must come from."""
    peer_timeout_s: float = 10.0
    """How long a broken connection between hosts may take to come back before its containers count as lost."""
    peer_lines: bool = True
    """Whether hosts that run stages for this one send each other what only they read; False: by way of this host."""


SECRETS = frozenset({"api_key", "api_keys", "admin_keys", "peer_token"})
"""Settings that are never printed."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a setting came from: `default`, `file PATH`, `environment NAME`, `flag`."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.detail}".strip()


@dataclass(frozen=True, slots=True)
class Composed:
    """A configuration and the origin of each of its fields."""

    config: Config
    origins: Mapping[str, Origin]
    notes: tuple[str, ...] = ()
    """What looks like a mistake and stops nothing."""
