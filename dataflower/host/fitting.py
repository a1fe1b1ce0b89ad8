"""Whether what a workflow needs is too large for this host whatever else runs, as far as files tell before a start."""

from __future__ import annotations

from dataflower.core.devices import Devices
from dataflower.core.failures import stage_too_large
from dataflower.errors import FailedPrecondition
from dataflower.host.holder import size_of
from dataflower.host.settings import HostConfig
from dataflower.spec.workflow import Workflow


def check_weights(workflow: Workflow, config: HostConfig, away: frozenset[str]) -> None:
    """Refuse a workflow with a stage whose weights alone are more than `device_memory_bytes`; reads the disk.

    What can't be told before a start (weights that have to be fetched, what a container takes) is found out by the
    first one. `away`: stages on other hosts.

    Raises:
        FailedPrecondition: it names the stage, what it needs, the cap, and what to do.
    """
    if not (config.device_batches and config.device_memory_bytes):
        return
    for name, stage in workflow.stages.items():
        if name in away or stage.is_switch or not Devices.shares(stage) or stage.resources.gpu not in {0, ""}:
            continue
        nbytes = size_of(config.models, stage.model)
        if nbytes > config.device_memory_bytes:
            raise FailedPrecondition(
                stage_too_large(name, {stage.model: nbytes}, 0, config.device_memory_bytes).message
            )
