"""Control groups: how much processor and memory, and how many processes, all of a container may use.

The groups lie beside the server's own, which is left alone, as are its parents: only what they hand down is used. Both
kinds of hierarchy are spoken, version 2 and 1. Where nothing may be made there, containers run without.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "dataflower-"
MOST_PROCESSES = 4096
"""Threads and processes of one container."""
_PERIOD_US = 20_000
_OWN_WORK = 0.25
"""Cores beyond those of the function: the data unit works while it computes."""
_CONTROLLERS = ("cpu", "memory", "pids")
_Files = Mapping[str, str]
"""Files of a controller, and what is to be written into them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one container. `cpu` in cores, None: no limit; `memory_bytes` 0: no limit."""

    cpu: float | None = None
    memory_bytes: int = 0

    def settings(self, version: int) -> dict[str, dict[str, str]]:
        """Controller -> file -> content. A controller without a limit is left out, but for the number of processes."""
        found = {"pids": {"pids.max": str(MOST_PROCESSES)}}
        if self.cpu is not None:
            quota = round(_PERIOD_US * (self.cpu if self.cpu < 1 else self.cpu + _OWN_WORK))
            v1 = {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota)}
            found["cpu"] = {"cpu.max": f"{quota} {_PERIOD_US}"} if version == 2 else v1
        if self.memory_bytes:
            name = "memory.max" if version == 2 else "memory.limit_in_bytes"
            found["memory"] = {name: str(self.memory_bytes)}
        return found


@dataclass(frozen=True, slots=True)
class Reservation:
    """Groups of a container that nobody knows yet. `files`: into which its first process is to write itself."""

    folders: Mapping[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(str(folder / "cgroup.procs") for folder in self.folders.values())


class Groups:
    """The groups of one server. Call `close`."""

    def __init__(self, root: Path = ROOT, membership: str | None = None) -> None:
        """Make the server's folders, and remove those that servers have left behind which are gone.

        Args:
            root: where the hierarchies are mounted.
            membership: text of /proc/self/cgroup.
        """
        text = Path("/proc/self/cgroup").read_text(encoding="ascii") if membership is None else membership
        self.version, places = find(text, root)
        self.why_not = "" if places else "no hierarchy with the controllers cpu, memory or pids"
        self._bases: dict[str, Path] = {}
        self._made: dict[int, tuple[Path, ...]] = {}
        self._stale: set[Path] = set()
        self._reservations = 0
        for controller, place in places.items():
            try:
                _sweep(place)
                base = place / f"{PREFIX}{os.getpid()}"
                base.mkdir(exist_ok=True)
                if self.version == 2:
                    enabled = _CONTROLLERS if controller == "" else (controller,)
                    _hand_down(base, enabled)
                self._bases[controller] = base
            except OSError as error:
                self.why_not = f"{error.strerror}: {error.filename or place}"

    def make(self, container: int, limits: Limits) -> tuple[str, ...]:
        """Make a container's groups; the files into which its first process is to write itself."""
        files: list[str] = []
        folders: list[Path] = []
        wanted = limits.settings(self.version)
        for controller, base in self._bases.items():
            settings = _of(controller, wanted)
            if not settings:
                continue
            folder = base / f"c{container}"
            try:
                folder.mkdir()
                folders.append(folder)
                _write(folder, settings)
                files.append(str(folder / "cgroup.procs"))
            except OSError as error:
                self.why_not = f"{error.strerror}: {error.filename or folder}"
        self._made[container] = tuple(folders)
        return tuple(files)

    def reserve(self) -> Reservation:
        """Make groups without limits, which a process may enter before it is known which container it will be."""
        self._reservations += 1
        folders: dict[str, Path] = {}
        for controller, base in self._bases.items():
            folder = base / f"c-spare{self._reservations}"
            try:
                folder.mkdir()
                folders[controller] = folder
            except OSError as error:
                self.why_not = f"{error.strerror}: {error.filename or folder}"
        return Reservation(folders)

    def adopt(self, container: int, limits: Limits, reserved: Reservation) -> tuple[str, ...]:
        """`make` with groups that were reserved: they are the container's now, and limited."""
        wanted = limits.settings(self.version)
        for controller, folder in reserved.folders.items():
            try:
                _write(folder, _of(controller, wanted))
            except OSError as error:
                self.why_not = f"{error.strerror}: {error.filename or folder}"
        self._made[container] = tuple(reserved.folders.values())
        return reserved.files

    def give_back(self, reserved: Reservation) -> None:
        """Nobody is to have these groups; they are removed as soon as they are empty."""
        self._stale.update(reserved.folders.values())
        self._clear()

    def remove(self, container: int) -> None:
        """The container is gone; a folder that something still dies in is removed with a later one."""
        self._stale.update(self._made.pop(container, ()))
        self._clear()

    def _clear(self) -> None:
        for folder in tuple(self._stale):
            with contextlib.suppress(OSError):
                folder.rmdir()
            if not folder.exists():
                self._stale.discard(folder)

    @property
    def controllers(self) -> tuple[str, ...]:
        """What can be limited: of cpu, memory, pids."""
        base = self._bases.get("")
        if base is None:
            return tuple(self._bases)
        return tuple(name for name in _CONTROLLERS if name in _words(base / "cgroup.controllers"))

    def close(self) -> None:
        """Remove everything; containers should be gone. Idempotent."""
        for container in tuple(self._made):
            self.remove(container)
        for base in self._bases.values():
            _remove(base)
        self._bases.clear()


def _of(controller: str, wanted: Mapping[str, _Files]) -> Mapping[str, _Files]:
    """What belongs into a hierarchy: of version 2, everything; else what is its controller's."""
    return {name: files for name, files in wanted.items() if controller in ("", name)}


def _write(folder: Path, settings: Mapping[str, _Files]) -> None:
    for files_of in settings.values():
        for name, content in files_of.items():
            file = folder / name
            try:
                file.write_text(content, encoding="ascii")
            except (FileNotFoundError, PermissionError):
                # v2: a controller that is not handed down has no file, and the kernel forbids to make one.
                if file.exists():
                    raise


def find(membership: str, root: Path = ROOT) -> tuple[int, Mapping[str, Path]]:
    """Version, and by controller the folder in which the server's own group lies ("": all controllers in one)."""
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            own[name] = path
    if (root / "cgroup.controllers").exists():
        place = _beside(root, own.get("", "/"))
        return 2, {"": place} if _words(place / "cgroup.subtree_control") & set(_CONTROLLERS) else {}
    found = {name: _beside(root / name, own[name]) for name in _CONTROLLERS if name in own and (root / name).is_dir()}
    return 1, found


def _beside(mount: Path, own: str) -> Path:
    return mount / os.path.dirname(own).lstrip("/")


def _hand_down(base: Path, controllers: tuple[str, ...]) -> None:
    there = _words(base / "cgroup.controllers")
    wanted = " ".join(f"+{name}" for name in controllers if name in there)
    if wanted:
        (base / "cgroup.subtree_control").write_text(wanted, encoding="ascii")


def _words(file: Path) -> set[str]:
    try:
        return set(file.read_text(encoding="ascii").split())
    except OSError:
        return set()


def _sweep(place: Path) -> None:
    for base in place.glob(f"{PREFIX}*"):
        pid = base.name.removeprefix(PREFIX)
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            _remove(base)


def _remove(base: Path) -> None:
    """The folder and the containers' in it, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in base.glob("c*"):
            if folder.is_dir():
                with contextlib.suppress(OSError):
                    folder.rmdir()
        base.rmdir()
