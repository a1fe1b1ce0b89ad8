"""What `doctor` says of the walls that a machine lacks: what that costs, and what to do."""

from __future__ import annotations

import pytest

from dataflower.cli import probes
from dataflower.cli.probes import Grade
from dataflower.config.settings import Config
from dataflower.container import isolation as isolation_of_containers
from dataflower.host import groups, isolation
from dataflower.host.isolation import Isolations, Layer
from dataflower.host.settings import DefaultIsolation
from dataflower.wire import Walls


@pytest.mark.parametrize("lacking", ["namespaces", "seccomp", "landlock"])
def test_each_layer_that_is_lacking_has_a_mend(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = tuple(Layer(name, name != lacking, "why") for name in ("namespaces", "seccomp", "landlock"))
    walls = {"namespaces": Walls.LANDLOCK, "seccomp": Walls.NONE, "landlock": Walls.ROOM}[lacking]
    monkeypatch.setattr(isolation, "ask", lambda: Isolations(walls, f"{lacking}: why", layers))
    whole, *found = probes.isolation(Config())
    by_name = {finding.name: finding for finding in found}
    assert (by_name[lacking].grade, by_name[lacking].detail) == (Grade.WARNING, "why")
    assert len(by_name[lacking].mend) > 20
    assert all(finding.grade is Grade.OK for name, finding in by_name.items() if name != lacking)
    assert (whole.grade is Grade.OK) == (walls is Walls.ROOM)


def test_what_is_looked_at_has_a_mend_each() -> None:
    assert set(probes._LAYER_MENDS) == {layer.value for layer in isolation_of_containers.Layer}
    assert set(probes._LIMITS) == set(groups._CONTROLLERS)


def test_a_sandbox_that_is_demanded_and_can_not_be_had_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Isolations(Walls.NONE, "seccomp: not in this kernel", (Layer("seccomp", False, "not in this kernel"),))
    monkeypatch.setattr(isolation, "ask", lambda: found)
    whole, _ = probes.isolation(Config(isolation=DefaultIsolation.SANDBOX))
    assert whole.grade is Grade.MISSING
    assert "`isolation: sandbox` is set" in whole.mend
    assert "seccomp: not in this kernel" in whole.mend
    assert probes.isolation(Config())[0].grade is Grade.WARNING


def test_limits_that_can_not_be_kept_are_named() -> None:
    assert probes.control_groups(2, ("cpu", "memory", "pids"), "").grade is Grade.OK
    partly = probes.control_groups(2, ("cpu",), "")
    assert (partly.grade, "memory: shared memory" in partly.detail, "cpu:" in partly.detail) == (
        Grade.WARNING,
        True,
        False,
    )
    none = probes.control_groups(1, (), "no hierarchy")
    assert "no hierarchy" in none.detail
    assert "systemd-run" in none.mend
