"""What a zygote is told about a container that it is to fork."""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec

from dataflower import wire
from dataflower.channel.board import Board
from dataflower.channel.link import Link
from dataflower.channel.segment import Spill
from dataflower.core.commands import StartContainer
from dataflower.host.settings import HostConfig


@dataclass(slots=True)
class Order:
    """A container that waits for its zygote. Owns its ends of sockets and lifeline, and the log's descriptor."""

    fork: wire.Fork
    links: tuple[Link, Link, Link]
    log: int
    board: Board
    lifeline: tuple[int, ...] = ()
    """The end to read of a pipe that the host alone can write to, where containers need one of their own."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What goes with the order, still this one's."""
        return (*(link.fileno() for link in self.links), self.log, self.board.descriptor, *self.lifeline)

    def close(self) -> None:
        """Close what was to be handed over."""
        for link in self.links:
            link.close()
        for descriptor in (self.log, *self.lifeline):
            os.close(descriptor)
        self.board.given()


def fork_order(command: StartContainer, workflow: str, config: HostConfig, spill: Spill | None) -> wire.Fork:
    """What the stage and the settings say; isolation, groups and folders are the launcher's to add."""
    stage = command.stage
    return wire.Fork(
        container=command.container,
        function=stage.function,
        stage=stage.name,
        workflow=workflow,
        params=msgspec.msgpack.encode(dict(stage.params)),
        outputs=tuple(
            wire.OutputPort(p.name, p.stream, p.type.kind.value, p.type.dtype, p.type.shape) for p in stage.outputs
        ),
        inputs=tuple(
            wire.InputPort(p.name, p.stream, p.type.kind.value, p.type.dtype, p.type.shape) for p in stage.input_ports
        ),
        concurrency=stage.scaling.concurrency,
        threads=max(1, round(stage.resources.cpu)),
        memory_bytes=stage.resources.memory_bytes or 0,
        arena_cap_bytes=config.container_arena_bytes,
        code_path=config.code_path,
        spill_dir=os.path.join(spill.directory, str(command.container)) if spill is not None else "",
        spill_cap_bytes=spill.cap_bytes if spill is not None else 0,
        spill_device=spill.device if spill is not None else 0,
        network=stage.network,
        gpu=stage.resources.gpu not in (0, "0", ""),
    )
