"""What a host can be told; every default suits one laptop."""

from __future__ import annotations

import enum
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from dataflower.checkpoint.settings import StoreConfig
from dataflower.core.pressure import Pressure
from dataflower.errors import InvalidArgument

MIB = 1024 * 1024
GIB = 1024 * MIB


def default_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class DefaultIsolation(enum.StrEnum):
    """Of stages that don't say what they want. AUTO: a sandbox where one is possible, else a process and a warning."""

    AUTO = "auto"
    PROCESS = "process"
    SANDBOX = "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """Settings of a `Runtime`. Sizes are bytes, durations seconds."""

    state_dir: Path | None = None
    """Where the journal lives; None keeps everything in memory, and nothing survives the process."""
    log_dir: Path | None = None
    """What functions print. None: `state_dir/logs`, or without a state directory the host's own standard error."""
    code_path: tuple[str, ...] = ()
    """Directories put in front of `sys.path` of every container."""
    isolation: DefaultIsolation = DefaultIsolation.AUTO
    readable_paths: tuple[str, ...] = ()
    """Files and directories that sandboxed containers may read, besides Python, the code path and models."""
    writable_paths: tuple[str, ...] = ()
    """Directories that they may write to, besides a /tmp of their own."""
    pass_environment: tuple[str, ...] = ()
    """Names (or patterns with `*`) of environment variables that they see, besides harmless ones."""
    control_groups: bool = True
    """Whether limits are also kept by control groups, where the kernel allows."""
    spare_containers: bool = True
    """Whether a process beside each fork server waits to become the next container: cold starts without the fork."""
    cpus: int = field(default_factory=default_cpus)
    max_containers: int = 64
    devices: tuple[str, ...] = ("cpu",)
    """Kinds of machine that this host counts as, by the names of price files: plans for others are refused."""
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
    """How long a container may take to be ready, import and `setup` included, where its stage says nothing."""
    stop_grace_s: float = 5.0
    """How long a stopped container may take to leave before it is killed."""
    drain_timeout_s: float = 10.0
    """How long running invocations may go on when the host shuts down."""
    container_arena_bytes: int = GIB
    """Cap on the shared memory that one container may own."""
    spill_dir: Path | None = Path("/var/tmp")
    """Where containers put what their shared memory has no room for, in files without a name; None: they wait."""
    container_spill_bytes: int = 16 * GIB
    """Cap on what one container may put there; a gibibyte of the disk stays free in any case."""
    host_arena_bytes: int = 2 * GIB
    """Cap on the shared memory for the inputs of running invocations."""
    output_ttl_s: float = 600.0
    """How long results in shared memory wait for a caller who reads none of them."""
    max_input_bytes: int = GIB
    """All inputs of one invocation together, or one item of a stream input."""
    recorded_bytes: int = 64 * 1024
    """Outputs of a synchronous invocation are kept in its record up to this size."""
    submitted_bytes: int = 256 * MIB
    """A submitted invocation fails if its outputs are larger, since they live in its record alone."""
    keep_finished: int = 10_000
    """How many finished invocations stay readable."""
    keep_finished_bytes: int = 64 * MIB
    """And how much they may take, without a state directory (about)."""
    keep_finished_s: float = 7 * 86400.0
    """And for how long (on disk only)."""
    max_server_crashes: int = 3
    """A submitted invocation that was running in so many crashes of the server is not run again."""
    preload: bool = False
    """Whether libraries, weights and containers are got ready ahead of calls, for those who are called often."""
    preload_memory_bytes: int = 4 * GIB
    """Cap on the main memory of what is held ready."""
    preload_device_bytes: int = 4 * GIB
    """The same, of each device."""
    pressure: Pressure = Pressure.MEASURED
    """When a container that still sends to other hosts gets its next task (`core.pressure`)."""
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
    seed: int = 0
    models: StoreConfig = field(default_factory=StoreConfig)
    """The store of weights."""
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
    set_aside_corrupt_journal: bool = False
    """Start with a new journal if the old one can't be read; the old file is kept beside it."""

    def __post_init__(self) -> None:
        if not (self.device_batches >= 0 and self.device_batch_size >= 1 and self.device_ttft_s > 0):
            raise InvalidArgument("device_batches must be at least 0, device_batch_size 1, device_ttft_s above 0")
        if self.device_memory_bytes and not self.device_batches:
            raise InvalidArgument(
                "device_memory_bytes is about stages that take turns: set device_batches to 1 or more"
            )
        if not (self.replan_headroom >= 1 and 0 < self.replan_short_s <= self.replan_long_s and self.replan_per_minute):
            message = "replan_headroom and replan_per_minute must be at least 1"
            raise InvalidArgument(f"{message}, replan_short_s above 0 and at most replan_long_s")

    @property
    def logs(self) -> Path | None:
        """The directory of log files, None if there is none."""
        if self.log_dir is not None:
            return self.log_dir
        return self.state_dir / "logs" if self.state_dir is not None else None
