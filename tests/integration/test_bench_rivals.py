"""Rivals of the benches: processes that answer requests, stand still between them, and leave nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import rivals


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_rival_answers_and_stands_still_between_requests() -> None:
    with rivals.field() as field:
        field.add("floor", "floor", "relay", ours=True)
        pid = field._rivals["floor"].pid
        field.measure("chain", "floor", "chain", stages=2, nbytes=1024, rounds=5, warm=1)
        field.measure("chain", "floor", "chain", stages=2, nbytes=1024, rounds=5, warm=1)
        field.measure("nothing", "floor", "no_such_thing")
        assert state(pid) == "T"
        assert len(field.samples("chain")) == 10
        assert field.median("chain")
        assert field.reason("chain") == ""
        assert "no_such_thing" in field.reason("nothing")
    assert not os.path.exists(f"/proc/{pid}")


def test_what_is_not_installed_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rivals, "PEERS", tmp_path / "python")
    with rivals.field() as field:
        field.add("ray", "ray_all")
        field.measure("chain", "ray", "actors_chain", stages=4)
        assert field.median("chain") is None
        assert "make bench-peers" in field.reason("chain")


def test_a_rival_that_dies_says_why() -> None:
    with pytest.raises(rivals.RivalError, match="No module named"):
        rivals.Rival("no_such_rival", ours=True)
