"""What `doctor` says of the walls that a machine lacks: what that costs, and what to do."""

from __future__ import annotations

import pytest

from dataflower.cli import probes
from dataflower.cli.probes import Grade
from dataflower.config.settings import Config
from dataflower.host import isolation
from dataflower.host.isolation import Isolations, Layer
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
