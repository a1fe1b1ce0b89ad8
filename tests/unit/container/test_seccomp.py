"""The filter, run on an own machine for BPF: every verdict of the kernel's, without the kernel."""

from __future__ import annotations

import socket
import struct

import pytest

from dataflower.container import kernel, seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, EACCES, ENOSYS = 0x50001, 0x5000D, 0x50026
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def verdict(program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = 0xC000003E) -> int:
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(*arguments, *([0] * (6 - len(arguments)))))
    steps = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, on_true, on_false, value = steps[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
        at += on_true if holds else on_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("network", [False, True])
def test_each_listed_call_is_refused_and_all_others_are_not(machine: str, network: bool) -> None:
    program = seccomp.program(network=network, machine=machine)
    refused = set(seccomp.refused(machine).values())
    looked_at = set(seccomp._LOOKED_AT[machine].values())
    for number in range(600):
        said = verdict(program, number, architecture=ARCHITECTURES[machine])
        if number in refused:
            assert said in (EPERM, ENOSYS), number
        elif number not in looked_at:
            assert said == ALLOW, number


def test_other_architectures_are_no_way_round() -> None:
    program = seccomp.program(network=True, machine="x86_64")
    assert verdict(program, 1, architecture=0x40000003) == KILL  # 32-bit calls have other numbers
    assert verdict(program, 0x40000000 | 101) == ENOSYS  # x32


@pytest.mark.parametrize(
    ("call", "arguments", "said"),
    [
        ("clone", (0x01200011,), ALLOW),  # fork
        ("clone", (0x003D0F00,), ALLOW),  # a thread
        ("clone", (kernel.CLONE_NEWUSER | 17,), EPERM),
        ("clone", (kernel.CLONE_NEWNS,), EPERM),
        ("clone3", (0, 88), ENOSYS),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0x541C), EPERM),
        ("ioctl", (0, 0xFFFFFFFF00005412), EPERM),  # the kernel looks at 32 bits only
        ("socket", (socket.AF_UNIX,), ALLOW),
        ("socket", (socket.AF_INET,), ALLOW),
        ("socket", (socket.AF_INET6,), ALLOW),
        ("socket", (socket.AF_NETLINK,), ALLOW),
        ("socket", (socket.AF_PACKET,), EACCES),
        ("socket", (40,), EACCES),  # vsock: to the machine underneath
        ("socket", (38,), EACCES),  # the kernel's own ciphers
    ],
)
def test_arguments_are_looked_at(call: str, arguments: tuple[int, ...], said: int) -> None:
    number = seccomp._LOOKED_AT["x86_64"][call]
    assert verdict(seccomp.program(network=True, machine="x86_64"), number, arguments) == said


def test_without_the_network_only_local_sockets_are_made() -> None:
    program = seccomp.program(network=False, machine="x86_64")
    number = seccomp._LOOKED_AT["x86_64"]["socket"]
    allowed = [family for family in range(64) if verdict(program, number, (family,)) == ALLOW]
    assert allowed == [socket.AF_UNIX]


def test_an_unknown_machine_is_said_to_be_unknown() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program(network=True, machine="riscv64")


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_among_others_a_process_may_change_itself_alone(machine: str) -> None:
    program = seccomp.program(network=False, among_others=True, machine=machine)
    own = {"setpriority": (0, 0), "ioprio_set": (1, 0)}
    others = {"setpriority": [(0, 7), (1, 0), (2, 0)], "ioprio_set": [(1, 7), (2, 0), (3, 0)]}
    for name, number in seccomp._OF_A_PROCESS[machine].items():
        mine = own.get(name, (0, 7, 7))
        assert verdict(program, number, mine, ARCHITECTURES[machine]) == ALLOW, name
        for theirs in others.get(name, [(7,), (0xFFFFFFFF,), (0x1_0000_0007,)]):
            assert verdict(program, number, theirs, ARCHITECTURES[machine]) == EPERM, (name, theirs)
    for name, number in seccomp._KEPT_BY_ALL[machine].items():
        assert verdict(program, number, architecture=ARCHITECTURES[machine]) == EPERM, name
