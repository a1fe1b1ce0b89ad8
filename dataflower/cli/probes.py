"""What `doctor` looks at: one small question to the machine each."""

from __future__ import annotations

import enum
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from dataflower import wire
from dataflower.channel.segment import device_of
from dataflower.config.settings import Config

_SEALS = ("F_SEAL_GROW", "F_SEAL_SHRINK", "F_SEAL_SEAL")
_GIB = 1024**3
_PEER = """
import socket, sys
end = socket.socket(fileno=int(sys.argv[1]))
end.send(b"ready")
while message := end.recv(64):
    end.send(message)
"""


class Grade(enum.StrEnum):
    """How a finding is meant. Only `MISSING` makes the machine unfit."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report; `mend` says what to do about it."""

    name: str
    grade: Grade
    detail: str
    mend: str = ""


_LAYER_MENDS = {
    "namespaces": "see there; until then Landlock keeps containers apart, if it can: they see each other's processes",
    "seccomp": "no sandbox without: a kernel with CONFIG_SECCOMP_FILTER; in Docker: --security-opt seccomp=unconfined",
    "landlock": "Linux 6.12 or newer, `landlock` among lsm= of its command line; without it `network: true` also opens "
    "abstract sockets, and there is no sandbox where namespaces are refused",
}
_LIMITS = {
    "cpu": "`resources.cpu` is no hard limit",
    "memory": "shared memory and forked processes of a function are not limited",
    "pids": "processes are counted for each user, not for each container",
}
Probe = Callable[[], "Finding | tuple[Finding, ...]"]


def ok(name: str, detail: str) -> Finding:
    """A finding to be content with."""
    return Finding(name, Grade.OK, detail)


def python() -> Finding:
    """The interpreter's version."""
    version = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036 - a checkout may be run by anything
        return Finding("python", Grade.MISSING, version, "install Python 3.11 or newer")
    return ok("python", f"{version} ({platform.python_implementation()})")


def compiled(package: Path | None = None) -> Finding:
    """Which modules on the way of a token are machine code, and whether each still is what its source says.

    Only a checkout can be at odds with itself: a wheel brings both, and pip dates them in any order.
    """
    package = package or Path(wire.__file__).parent
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    pairs = [(path.with_name(path.name.removesuffix(suffix) + ".py"), path) for path in package.rglob(f"*{suffix}")]
    sources = {source: path for source, path in sorted(pairs) if source.exists()}
    old = [source for source, path in sources.items() if source.stat().st_mtime > path.stat().st_mtime]
    if old and (package.parent / "pyproject.toml").exists():
        return Finding(
            "compiled modules",
            Grade.WARNING,
            f"{old[0].relative_to(package)} is newer than its compiled form, which is what runs ({len(old)} such)",
            "make native, or make pure for plain Python",
        )
    return ok("compiled modules", str(len(sources)) if sources else "none: plain Python (make native compiles them)")


def cores() -> Finding:
    """Cores this process may use."""
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return Finding("cores", Grade.WARNING, str(count), "stages of a workflow overlap only with 2 cores or more")
    return ok("cores", str(count))


def memory() -> Finding:
    """Memory that is free to use."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(fields[key].split()[0]) * 1024 / _GIB for key in ("MemTotal", "MemAvailable"))
    detail = f"{available:.1f} GiB available of {total:.1f} GiB"
    if available < 2:
        return Finding("memory", Grade.WARNING, detail, "the packaged models want about 2 GiB")
    return ok("memory", detail)


def memfd() -> Finding:
    """Sealed anonymous shared memory: the one thing that nothing works without."""
    import fcntl

    try:
        descriptor = os.memfd_create("doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError) as error:
        return Finding("memfd", Grade.MISSING, str(error), "needs Linux 3.17 or newer and memfd_create allowed")
    try:
        os.ftruncate(descriptor, 4096)
        seals = 0
        for name in _SEALS:
            seals |= getattr(fcntl, name)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        try:
            os.ftruncate(descriptor, 8192)
        except PermissionError:
            return ok("memfd", "created and sealed")
        return Finding("memfd", Grade.MISSING, "seals do not hold", "use a kernel that enforces file seals")
    except OSError as error:
        return Finding("memfd", Grade.MISSING, f"can't be sealed: {error}", "allow F_ADD_SEALS (seccomp profile?)")
    finally:
        os.close(descriptor)


def seqpacket() -> Finding:
    """Message sockets between processes."""
    try:
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
            end.close()
    except OSError as error:
        return Finding("seqpacket", Grade.MISSING, str(error), "UNIX SEQPACKET sockets must be allowed")
    return ok("seqpacket", "available")


def pidfd() -> Finding:
    """Descriptors of processes."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        return Finding("pidfd", Grade.WARNING, str(error), "needs Linux 5.3 or newer; deaths show by socket alone")
    return ok("pidfd", "available")


def shm() -> Finding:
    """Reported only: arenas are memfds, which no mount limits."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return ok("/dev/shm", "not mounted (not needed)")
    return ok("/dev/shm", f"{usage.total / _GIB:.2f} GiB (not needed)")


def isolation(config: Config) -> tuple[Finding, ...]:
    """What keeps containers apart here: each means, tried in a process of its own, and what comes of them."""
    from dataflower.host.isolation import ask
    from dataflower.host.settings import DefaultIsolation
    from dataflower.wire import Walls

    found = ask()
    what = {
        Walls.ROOM: "sandboxes with namespaces of their own",
        Walls.LANDLOCK: "sandboxes by Landlock: other processes can be seen, not touched",
        Walls.NONE: "none: containers are plain processes",
    }[found.walls]
    name = "isolation"
    if found.walls is Walls.ROOM:
        whole = ok(name, what)
    elif config.isolation is DefaultIsolation.SANDBOX and found.walls is Walls.NONE:
        whole = Finding(name, Grade.MISSING, what, f"`isolation: sandbox` is set, and: {found.why_not}")
    else:
        whole = Finding(name, Grade.WARNING, what, found.why_not)
    layers = [
        ok(layer.layer, layer.detail)
        if layer.possible
        else Finding(layer.layer, Grade.WARNING, layer.detail, _LAYER_MENDS.get(layer.layer, ""))
        for layer in found.layers
    ]
    return (whole, *layers)


def cgroups() -> Finding:
    """Whether limits can be kept by control groups."""
    from dataflower.host.groups import Groups

    groups = Groups()
    try:
        return control_groups(groups.version, groups.controllers, groups.why_not)
    finally:
        groups.close()


def control_groups(version: int, able: Sequence[str], why_not: str) -> Finding:
    """What limits can be kept, and what comes of those that can't."""
    lacking = [f"{name}: {what}" for name, what in _LIMITS.items() if name not in able]
    detail = f"v{version}: {', '.join(able) or why_not}"
    if not lacking:
        return ok("cgroups", detail)
    mend = "under systemd: systemd-run --user --scope -p Delegate=yes dataflower serve"
    return Finding("cgroups", Grade.WARNING, f"{detail}; lacks {'; '.join(lacking)}", mend)


def descriptors() -> Finding:
    """How many files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1024:
        return Finding("open files", Grade.WARNING, f"{soft} (hard {hard})", "ulimit -n 4096")
    return ok("open files", f"{soft} (hard {hard})")


def extra(name: str, modules: tuple[tuple[str, str], ...]) -> Callable[[], Finding]:
    """A probe for an optional dependency group: (module, distribution) pairs."""

    def probe() -> Finding:
        found, lacking = [], []
        for module, distribution in modules:
            if util.find_spec(module) is None:
                lacking.append(module)
            else:
                found.append(f"{module} {metadata.version(distribution)}")
        if lacking:
            mend = f"pip install 'dataflower[{name}]' if a workflow needs it"
            return Finding(f"extra {name}", Grade.WARNING, "lacks " + ", ".join(lacking), mend)
        return ok(f"extra {name}", ", ".join(found))

    return probe


def models() -> Finding:
    """The packaged models that the shipped workflows use."""
    from functions import assets

    wanted = [getattr(assets, name) for name in vars(assets) if name.isupper() and name != "ADAPTERS"]
    lacking = [folder for folder in wanted if not (assets.cache() / folder).is_dir()]
    if lacking:
        detail = f"lacks {', '.join(lacking)} in {assets.cache()}"
        return Finding("models", Grade.WARNING, detail, "make models, if you want to run the shipped workflows")
    trained = "" if (assets.cache() / assets.ADAPTERS).is_dir() else "; no adapters (make adapters trains two)"
    return ok("models", f"{len(wanted)} packages in {assets.cache()}{trained}")


def disk(config: Config) -> Finding:
    """Room where the state lives."""
    place = config.state_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    if free < 1:
        return Finding("disk", Grade.WARNING, f"{free:.1f} GiB free at {place}", "set DATAFLOWER_STATE_DIR elsewhere")
    return ok("disk", f"{free:.1f} GiB free at {place}")


def spill(config: Config) -> Finding:
    """Whether what containers have no room for in memory can go to disk."""
    if config.spill_dir is None:
        return ok("spill", "off: tasks wait while their container's memory is full (setting spill_dir)")
    try:
        device_of(str(config.spill_dir))
    except OSError as error:
        mend = "tasks will wait while their container's memory is full; set DATAFLOWER_SPILL_DIR elsewhere"
        return Finding("spill", Grade.WARNING, f"{config.spill_dir}: {error.strerror}", mend)
    return ok("spill", f"to {config.spill_dir}, {shutil.disk_usage(config.spill_dir).free / _GIB:.1f} GiB free")


def port(config: Config) -> Finding:
    """Whether `serve` could listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.address, config.port))
        except OSError as error:
            detail = f"{config.address}:{config.port}: {error.strerror}"
            return Finding("port", Grade.WARNING, detail, "a server runs already, or choose another with --port")
    return ok("port", f"{config.address}:{config.port} is free")


def peers(config: Config) -> tuple[Finding, ...]:
    """Whether the other hosts answer."""
    from dataflower.cli.hosts import reach
    from dataflower.errors import DataflowerError
    from dataflower.host.placement import Placement

    try:
        known = Placement(config.host_name, config.peers, config.placement).addresses
    except DataflowerError as error:
        return (Finding("peers", Grade.MISSING, error.message, "settings peers, placement"),)
    found = []
    for name, address in known.items():
        try:
            found.append(ok("peer", f"{name} at {address} answers in {reach(address) * 1000:.1f} ms"))
        except OSError as error:
            mend = "is `dataflower serve --peer-port` running there, and may it be reached?"
            found.append(Finding("peer", Grade.WARNING, f"{name} at {address}: {error}", mend))
    return tuple(found)


def hop() -> Finding:
    """Median round trip of a short message between two processes, on one core and wherever they are put."""
    allowed = os.sched_getaffinity(0)
    free = 1e6 * _ping_pong(2000)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        pinned = 1e6 * _ping_pong(2000)
    finally:
        os.sched_setaffinity(0, allowed)
    detail = f"{free:.1f} us round trip between two processes, {pinned:.1f} us on one core (medians)"
    if free > 1000:
        return Finding("hop", Grade.WARNING, detail, "the machine is busy; look again when it is idle")
    return ok("hop", detail)


def _ping_pong(rounds: int) -> float:
    """Seconds, median. The peer is a fresh interpreter: forking a process that may have threads is not safe."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        peer = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PEER, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        samples = []
        ours.recv(64)
        for _ in range(rounds):
            begin = time.perf_counter()
            ours.send(b"ping")
            ours.recv(64)
            samples.append(time.perf_counter() - begin)
    peer.wait()
    return sorted(samples)[rounds // 2]


def bandwidth() -> Finding:
    """How fast memory is copied: what passing tensors by reference saves."""
    import numpy as np

    source = np.ones(64 * 1024 * 1024, np.uint8)
    target = np.zeros_like(source)
    best = min(_timed(lambda: np.copyto(target, source)) for _ in range(5))
    return ok("memcpy", f"{source.nbytes / best / 1e9:.1f} GB/s (64 MB, one core, best of 5)")


def _timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def probes(config: Config) -> tuple[Probe, ...]:
    """All of them, in the order of the report."""
    return (
        python,
        compiled,
        cores,
        memory,
        memfd,
        seqpacket,
        pidfd,
        descriptors,
        lambda: disk(config),
        lambda: spill(config),
        lambda: port(config),
        lambda: peers(config),
        shm,
        lambda: isolation(config),
        cgroups,
        extra("llm", (("torch", "torch"), ("transformers", "transformers"))),
        extra("video", (("av", "av"), ("cv2", "opencv-python-headless"))),
        models,
        hop,
        bandwidth,
    )
