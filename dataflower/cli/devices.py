"""Devices that stages share, as plain values and as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataflower.cli.sizes import human

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from dataflower.core.device.state import DeviceState


def device_data(state: DeviceState) -> dict[str, Any]:
    """A device for JSON and YAML."""
    return {
        "name": state.name,
        "running": state.running,
        "slots": state.slots,
        "batches": state.batches,
        "cap_bytes": state.cap_bytes,
        "used_bytes": state.used_bytes,
        "offloaded": state.offloaded,
        "sharers": [
            {
                "workflow": sharer.workflow,
                "stage": sharer.stage,
                "waiting": sharer.waiting,
                "objective_s": sharer.slo_s,
                "first_s": None if sharer.latency is None else sharer.latency.first_s,
                "more_s": None if sharer.latency is None else sharer.latency.more_s,
                "window_size": sharer.window.size,
                "window_wait_s": sharer.window.wait_s,
            }
            for sharer in state.sharers
        ],
    }


def device_text(state: DeviceState) -> str:
    """A line about a device as a whole."""
    line = f"device {state.name}: {state.running} of {state.slots} batches run, {state.batches} have run"
    if state.cap_bytes:
        memory = f"{human(state.used_bytes)} of {human(state.cap_bytes)}"
        line += f"; memory {memory}, {state.offloaded} artifacts made room"
    return line


def device_table(states: Iterable[DeviceState]) -> Table:
    """A line for each stage that takes turns."""
    from rich.table import Table
    from rich.text import Text

    names = ("device", "stage", "waiting", "objective", "first token", "each further", "window")
    table = Table(*names, box=None, pad_edge=False)
    for state in states:
        for s in state.sharers:
            first = "-" if s.latency is None else f"{s.latency.first_s:.3f} s"
            more = "-" if s.latency is None else f"{s.latency.more_s:.3f} s"
            window = f"{s.window.size} or {s.window.wait_s:.2f} s"
            row = (state.name, f"{s.workflow}/{s.stage}", str(s.waiting), f"{s.slo_s:g} s", first, more, window)
            table.add_row(*map(Text, row))
    return table
