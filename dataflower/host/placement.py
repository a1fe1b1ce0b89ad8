"""Which stage runs on which host: what the server is told, else what the workflow says, else here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from dataflower.errors import FailedPrecondition, InvalidArgument
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.workflow import Stage, Workflow


class Placement:
    """The names of hosts, and the rules."""

    def __init__(self, own: str, peers: Iterable[str], rules: Iterable[str]) -> None:
        """`peers`: `name=host:port`; `rules`: `workflow.stage=name`. Raises InvalidArgument."""
        self._own = own
        addresses: dict[str, str] = {}
        for entry in peers:
            name, _, address = entry.partition("=")
            host, _, port = address.rpartition(":")
            if not name or not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise InvalidArgument(f"peers: expected name=host:port, not {entry!r}")
            if name == own or name in addresses:
                raise InvalidArgument(f"peers: there is a host {name!r} already (settings host_name, peers)")
            addresses[name] = address
        self.addresses: Mapping[str, str] = MappingProxyType(addresses)
        """Of the other hosts, by name."""
        self._rules: dict[str, str] = {}
        for entry in rules:
            place, _, name = entry.partition("=")
            if "." not in place or not name:
                raise InvalidArgument(f"placement: expected workflow.stage=host, not {entry!r}")
            self._rules[place] = self._known(name, f"placement: {entry}")

    def of(self, workflow: str, stage: Stage) -> str:
        """The name of another host; empty for this one. Raises FailedPrecondition for one that is unknown."""
        name = self._rules.get(f"{workflow}.{stage.name}")
        if name is None:
            name = self._known(stage.resources.host, f"stage {stage.name!r} of {workflow!r}: resources.host")
        return name

    def places(self, workflow: Workflow) -> dict[str, str]:
        """The hosts of the stages that run on other ones, by stage; those that nobody knows are left out."""
        found: dict[str, str] = {}
        for stage in workflow.stages.values():
            with contextlib.suppress(FailedPrecondition):
                if not stage.is_switch and (name := self.of(workflow.name, stage)):
                    found[stage.name] = name
        return found

    def check(self, workflow: Workflow) -> None:
        """Raise FailedPrecondition if a stage is to run on a host that this one doesn't know."""
        for stage in workflow.stages.values():
            if not stage.is_switch:
                self.of(workflow.name, stage)

    def _known(self, name: str, where: str) -> str:
        if not name or name == self._own:
            return ""
        if name not in self.addresses:
            hint = did_you_mean(name, self.addresses, "start the server with --peer NAME=HOST:PORT")
            raise FailedPrecondition(f"{where}: this server knows no host {name!r} ({hint})")
        return name
