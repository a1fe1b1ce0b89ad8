"""`doctor`: grades, exit codes, and probes on machines that lack something."""

from __future__ import annotations

import json
import os
import resource
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataflower.cli import probes
from dataflower.cli.doctor import examine
from dataflower.cli.group import app
from dataflower.cli.probes import Finding, Grade
from dataflower.config.settings import Config
from functions import assets


def outcome(monkeypatch: pytest.MonkeyPatch, *findings: Finding, args: tuple[str, ...] = ()) -> tuple[int, str]:
    monkeypatch.setattr(probes, "probes", lambda config: tuple((lambda f=f: f) for f in findings))
    result = CliRunner().invoke(app, ["doctor", *args])
    return result.exit_code, result.stdout


def test_warnings_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = outcome(monkeypatch, Finding("cores", Grade.WARNING, "1", "get another"))
    assert code == 0
    assert "warning" in text
    assert "get another" in text


def test_something_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = outcome(monkeypatch, probes.ok("cores", "2"), Finding("memfd", Grade.MISSING, "no", "a new kernel"))
    assert code == 1
    assert "a new kernel" in text


def test_json_has_every_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = outcome(monkeypatch, probes.ok("cores", "2"), args=("-o", "json"))
    assert code == 0
    assert json.loads(text) == [{"name": "cores", "grade": "ok", "detail": "2", "mend": ""}]


def test_a_probe_that_breaks_is_a_warning() -> None:
    def free_memory() -> Finding:
        raise FileNotFoundError("/proc/meminfo")

    (finding,) = examine([free_memory])
    assert (finding.name, finding.grade) == ("free memory", Grade.WARNING)
    assert "FileNotFoundError" in finding.detail


def test_this_machine_runs_dataflower() -> None:
    essential = examine([probes.python, probes.memfd, probes.seqpacket])
    assert [finding.grade for finding in essential] == [Grade.OK] * 3


def test_compiled_modules_older_than_their_source(tmp_path: Path) -> None:
    package = tmp_path / "dataflower"
    package.mkdir()
    assert probes.compiled(package).detail.startswith("none")
    source, machine = package / "link.py", package / f"link{sysconfig.get_config_var('EXT_SUFFIX')}"
    source.touch()
    machine.touch()
    os.utime(source, (1, 1))
    fresh = probes.compiled(package)
    assert (fresh.grade, fresh.detail) == (Grade.OK, "1")
    os.utime(machine, (0, 0))
    assert probes.compiled(package).grade is Grade.OK  # installed from a wheel, whatever its files are dated
    (tmp_path / "pyproject.toml").touch()
    stale = probes.compiled(package)
    assert stale.grade is Grade.WARNING
    assert "link.py is newer" in stale.detail
    assert "make native" in stale.mend


def test_no_memfd_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert probes.memfd().grade is Grade.MISSING


def test_one_core_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert probes.cores().grade is Grade.WARNING


def test_few_descriptors_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 512))
    assert probes.descriptors().grade is Grade.WARNING


def test_an_extra_that_is_not_installed_says_how_to_get_it() -> None:
    finding = probes.extra("sound", (("no_such_module", "nothing"),))()
    assert finding.grade is Grade.WARNING
    assert "dataflower[sound]" in finding.mend


def test_models_are_named_if_they_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATAFLOWER_CACHE", str(tmp_path))
    finding = probes.models()
    assert finding.grade is Grade.WARNING
    assert "make models" in finding.mend


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probes.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and _Usage())
    assert probes.disk(Config(state_dir=tmp_path / "not" / "yet")).grade is Grade.WARNING


class _Usage:
    free = 100 * 2**20


def test_where_memory_goes_on_must_take_files(tmp_path: Path) -> None:
    assert probes.spill(Config(spill_dir=tmp_path)).grade is Grade.OK
    assert "tasks wait" in probes.spill(Config(spill_dir=None)).detail
    missing = probes.spill(Config(spill_dir=tmp_path / "gone"))
    assert missing.grade is Grade.WARNING
    assert str(tmp_path / "gone") in missing.detail
    assert "DATAFLOWER_SPILL_DIR" in missing.mend


def test_what_make_models_does_not_bring_is_not_called_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOWER_CACHE", str(tmp_path))
    found = probes.models()
    assert (found.grade, found.mend) == (Grade.WARNING, "make models, if you want to run the shipped workflows")
    for name in found.detail.removeprefix("lacks ").partition(" in ")[0].split(", "):
        (tmp_path / name).mkdir()
    found = probes.models()
    assert found.grade is Grade.OK
    assert found.detail.endswith("; no adapters (make adapters trains two)")
    (tmp_path / assets.ADAPTERS).mkdir()
    assert "adapters" not in probes.models().detail
