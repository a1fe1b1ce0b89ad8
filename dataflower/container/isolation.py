"""What can keep a container in its place on this machine, found out by trying it.

    python -m dataflower.container.isolation

prints a line for each layer, and which kind of sandbox comes of them.
"""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from dataflower.container import kernel, landlock, room, seccomp
from dataflower.container.view import View, view
from dataflower.wire import Walls

_OK = b"ok"


@dataclass(frozen=True, slots=True)
class Isolation:
    """`walls`: what a sandbox is made of here. `why_not`: what is lacking for the stronger kinds, in words."""

    walls: Walls
    why_not: str = ""


class Layer(enum.StrEnum):
    """What was looked at."""

    NAMESPACES = "namespaces"
    SECCOMP = "seccomp"
    LANDLOCK = "landlock"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a layer holds; `detail` says what there is, or why not."""

    layer: Layer
    possible: bool
    detail: str


def judge(findings: tuple[Finding, ...], at_most: Walls = Walls.ROOM) -> Isolation:
    """The strongest sandbox that these layers make, but none better than `at_most`."""
    allowed = list(Walls)[list(Walls).index(at_most) :]
    by_layer = {finding.layer: finding for finding in findings}
    lacking = [f"{f.layer.value}: {f.detail}" for f in findings if not f.possible]
    why_not = "; ".join(lacking)
    if at_most is not Walls.ROOM:
        why_not = f"not wanted beyond {at_most.value}"
    if by_layer[Layer.SECCOMP].possible:
        if Walls.ROOM in allowed and by_layer[Layer.NAMESPACES].possible:
            return Isolation(Walls.ROOM)
        if Walls.LANDLOCK in allowed and by_layer[Layer.LANDLOCK].possible:
            return Isolation(Walls.LANDLOCK, why_not)
    return Isolation(Walls.NONE, why_not)


def examine(what: View | None = None) -> tuple[Finding, ...]:
    """Try every layer in children of this process, which should be small and have one thread."""
    seen = what or view()
    return (
        _tried(Layer.NAMESPACES, lambda: _try_room(seen)),
        _tried(Layer.SECCOMP, _try_filter),
        _tried(Layer.LANDLOCK, _try_landlock),
    )


def _tried(layer: Layer, step: Callable[[], str]) -> Finding:
    """Run `step` in a child; its answer or its error comes back through a pipe."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        _answer(write, step)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        said = answers.read()
    os.waitpid(pid, 0)
    possible = said.startswith(_OK)
    detail = said.removeprefix(_OK).decode(errors="replace").strip()
    return Finding(layer, possible, detail or ("available" if possible else "the attempt was killed"))


def _answer(write: int, step: Callable[[], str]) -> NoReturn:
    try:
        said = b"ok " + step().encode()
    except BaseException as error:  # whatever the machine says, it is the answer
        said = str(error).encode()
    os.write(write, said)
    os._exit(0)


def _try_room(what: View) -> str:
    """In two steps, as the zygote does it."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.map_self(uid, gid, uid, gid)
        room.unshare(uid, gid)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({_advice()})") from error
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        _answer(write, lambda: _build(what))
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        said = answers.read()
    os.waitpid(pid, 0)
    if not said.startswith(_OK):
        raise OSError(0, said.decode(errors="replace") + " (in Docker: --security-opt systempaths=unconfined)")
    return "user, mount, process, IPC, network and host name"


def _build(what: View) -> str:
    kernel.loopback_up()
    room.build(what, gpu=False)
    return ""


def _try_filter() -> str:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.install_filter(seccomp.program(network=True))
    try:
        kernel.unshare(kernel.CLONE_NEWUTS)
    except PermissionError:
        return f"{len(seccomp.refused(os.uname().machine))} system calls refused"
    raise OSError(0, "a filter was installed and does not hold")


def _try_landlock() -> str:
    version = kernel.landlock_version()
    if version < landlock.SCOPED_SINCE:
        raise OSError(0, f"ABI {version}; {landlock.SCOPED_SINCE} is needed (Linux 6.12)")
    return f"ABI {version}"


def _advice() -> str:
    """Where a kernel that refuses namespaces can be told otherwise."""
    for path, refusing, mend in (
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl {}=0, or an AppArmor profile"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl {}=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl {}=10000"),
    ):
        try:
            with open(path, encoding="ascii") as file:
                if file.read().strip() == refusing:
                    return mend.format(path.removeprefix("/proc/sys/").replace("/", "."))
        except OSError:
            continue
    return "the kernel or a seccomp profile refuses namespaces; in Docker: --security-opt seccomp=unconfined"


def main() -> None:
    """Print the findings as JSON."""
    findings = examine()
    found = judge(findings)
    rows = [{"layer": f.layer.value, "possible": f.possible, "detail": f.detail} for f in findings]
    json.dump({"walls": found.walls.value, "why_not": found.why_not, "layers": rows}, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
