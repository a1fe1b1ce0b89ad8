"""Which files a sandboxed container sees: system libraries, Python, the code, the models; read-only, and no more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dataflower

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/sys/devices/system")
CONFIGURATION = (
    "alternatives",
    "ca-certificates",
    "fonts",
    "gai.conf",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "resolv.conf",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
)
"""Of /etc: what libraries look for and nobody hides."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SECRETS = (
    ".aws",
    ".azure",
    ".config",
    ".docker",
    ".git-credentials",
    ".gnupg",
    ".kube",
    ".local/state",
    ".netrc",
    ".ssh",
)
"""Of the home directory: covered up where the code path shows all of it."""
MACHINE_FILES = ("cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "uptime", "version", "sys")
"""Of /proc: what a container may read that shares /proc with others."""


@dataclass(frozen=True, slots=True)
class View:
    """Absolute paths. `readable` and `writable` exist; `private` become empty directories of the container's own.

    `hidden`: files and directories below readable ones that are covered up. `gpu`: shown to containers with a GPU.
    `spill`: a directory in place of which each room shows one of its own that lies in it; empty: there is none.
    """

    readable: tuple[str, ...]
    writable: tuple[str, ...]
    private: tuple[str, ...]
    hidden: tuple[str, ...]
    devices: tuple[str, ...]
    gpu: tuple[str, ...]
    spill: str = ""


def view(
    *,
    readable: Iterable[str] = (),
    writable: Iterable[str] = (),
    hidden: Iterable[str] = (),
    spill: str = "",
    environ: Mapping[str, str] | None = None,
    path: Sequence[str] | None = None,
) -> View:
    """What this interpreter needs to import what it can import here, and where models are kept.

    Args:
        readable: further directories, such as the code path.
        writable: shown with the right to write.
        hidden: covered up wherever they show: the state of the server.
        spill: where containers put what their memory has no room for.
        environ: instead of `os.environ`.
        path: instead of `sys.path`.
    """
    environ = os.environ if environ is None else environ
    home = _home(environ)
    wanted = [*SYSTEM, *(f"/etc/{name}" for name in CONFIGURATION)]
    wanted += [sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(dataflower.__file__).parent.parent)]
    wanted += [entry for entry in (sys.path if path is None else path) if os.path.isabs(entry)]
    wanted += [*readable, *model_caches(environ, home)]
    changeable = _existing(writable)
    return View(
        readable=_uncovered(_existing(wanted)),
        writable=changeable,
        private=tuple(dict.fromkeys(("/tmp", "/var/tmp", "/dev/shm", "/run", home))),
        hidden=_existing((*hidden, *(os.path.join(home, name) for name in SECRETS), "/etc/ssl/private")),
        devices=_existing(DEVICES),
        gpu=_gpu_paths(),
        spill=os.path.abspath(spill) if spill else "",
    )


def model_caches(environ: Mapping[str, str], home: str) -> list[str]:
    """Where downloaded models lie; not the tokens that lie beside them."""
    caches = environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    hub = environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return [
        environ.get("DATAFLOWER_CACHE") or os.path.join(home, ".cache", "dataflower"),
        *(os.path.join(hub, name) for name in ("hub", "datasets", "modules")),
        environ.get("HF_HUB_CACHE", ""),
        os.path.join(environ.get("TORCH_HOME") or os.path.join(caches, "torch"), "hub"),
    ]


def _home(environ: Mapping[str, str]) -> str:
    home = os.path.abspath(environ.get("HOME") or "/tmp")
    return "/tmp" if home == "/" else home


def _existing(paths: Iterable[str]) -> tuple[str, ...]:
    absolute = (os.path.abspath(os.path.expanduser(path)) for path in paths if path)
    return tuple(dict.fromkeys(path for path in absolute if path != "/" and os.path.exists(path)))


def _uncovered(paths: Iterable[str]) -> tuple[str, ...]:
    """Shortest first, without those that lie below others (and really do: not behind a link that leads out)."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda p: (p.count("/"), p)):
        real = os.path.realpath(path)
        if not any(path.startswith(k + "/") and real.startswith(os.path.realpath(k) + "/") for k in kept):
            kept.append(path)
    return tuple(kept)


def _gpu_paths() -> tuple[str, ...]:
    names = sorted(os.listdir("/dev"))
    nodes = [f"/dev/{name}" for name in names if name.startswith("nvidia") or name in ("dri", "kfd")]
    return _existing([*nodes, "/sys/bus/pci", "/sys/devices", "/sys/module/nvidia", "/etc/OpenCL", "/etc/vulkan"])
