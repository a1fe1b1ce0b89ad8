"""Plan again in a process of its own: planning may compute for seconds, which would hold up the interpreter of a host.

`python -m dataflower.host.replan_child` reads a `Request` from its stdin and writes an `Answer` to its stdout, as JSON.
"""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML

import dataflower
from dataflower.errors import InvalidArgument, Unavailable
from dataflower.planner.again import plan_again
from dataflower.planner.document import PlanDocument, parse_plan
from dataflower.planner.reading import DocumentInvalid
from dataflower.planner.room import Room, check_room

MODULE = "dataflower.host.replan_child"
TIMEOUT_S = 300.0
NICE = 10
"""It yields the cores to whatever serves."""


class Request(msgspec.Struct, frozen=True):
    """The text of the present plan, the rate that is wanted, what the host has, and what run times are counted as, over
    the profile."""

    plan: str
    rate: float
    room: Room
    slowdown: dict[str, float] = {}


class Answer(msgspec.Struct, frozen=True):
    """The text of the new plan, empty if the present one is to be kept; why, for people; the plan as plain values."""

    plan: str
    note: str = ""
    data: dict[str, Any] = {}


async def plan_apart(request: Request) -> Answer:
    """Plan again without holding up the caller's loop. Cancelled, it kills the process.

    Raises:
        Unavailable: the process failed, or took longer than `TIMEOUT_S`.
    """
    process = await asyncio.to_thread(_started)
    try:
        said, wrong = await asyncio.to_thread(process.communicate, msgspec.json.encode(request), TIMEOUT_S)
        return msgspec.json.decode(said, type=Answer)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"planning took longer than {TIMEOUT_S:g} s") from None
    except msgspec.DecodeError:
        last = (wrong.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise Unavailable(f"planning failed with status {process.returncode}: {last}") from None
    finally:
        if process.poll() is None:
            process.kill()


def _started() -> subprocess.Popen[bytes]:
    root = str(Path(dataflower.__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH", "")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, known)))}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-P", "-m", MODULE], env=environ, stdin=pipe, stdout=pipe, stderr=pipe)


def answer(request: Request) -> Answer:
    """What the process does."""
    present = parse_plan(request.plan, "plan")
    try:
        again = plan_again(
            present,
            request.rate,
            lambda made: _refusal(made, request.room),
            request.room.allows,
            request.slowdown,
        )
    except InvalidArgument as error:
        return Answer("", error.message)
    if again.document is None:
        return Answer("", again.note)
    out = io.StringIO()
    out.write("# Planned again by a server for the traffic and the run times that it measured.\n")
    data = again.document.as_data()
    YAML(typ="safe", pure=True).dump(data, out)
    return Answer(out.getvalue(), again.note, data)


def _refusal(document: PlanDocument, room: Room) -> str:
    try:
        check_room(document, None, room, "plan")
    except DocumentInvalid as error:
        return "; ".join(problem.message for problem in error.problems)
    return ""


def main() -> None:
    """Read, plan, write."""
    os.nice(NICE)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.json.encode(answer(request)))


if __name__ == "__main__":
    main()
