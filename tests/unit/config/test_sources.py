"""Finding and reading sources without importing them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dataflower.config.sources import file_reader, load_file, load_text, module_file, read_source, source_finder
from dataflower.errors import NotFound, WorkflowInvalid

YAML = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: w}
inputs: {x: int}
stages:
  s: {function: "here.there:twice", inputs: {x: inputs.x}}
outputs: {y: s.out}
profiles:
  wide: {stages: {s: {scaling: {max_replicas: 5}}}}
"""
CODE = "raise SystemExit('imported')\ndef twice(x: int) -> int: ...\n"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "here" / "there.py").write_text(CODE)
    return tmp_path


def test_a_module_is_found_below_the_first_root_that_has_it(package: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "here").mkdir(parents=True)
    (other / "here" / "there.py").write_text("")
    assert module_file("here.there", [other, package]) == other / "here" / "there.py"
    assert module_file("here.there", [package, other]) == package / "here" / "there.py"
    assert module_file("here", [package]) == package / "here" / "__init__.py"
    assert module_file("here.nowhere", [package]) is None


@pytest.mark.parametrize("name", ["../here", "here/there", "", ".", "here..there", "/etc/passwd"])
def test_only_dotted_names_are_looked_up(package: Path, name: str) -> None:
    assert module_file(name, [package]) is None
    assert source_finder([package])(name) is None


def test_the_finder_gives_the_source_without_running_it(package: Path) -> None:
    assert source_finder([package])("here.there") == (str(package / "here" / "there.py"), CODE)
    assert "here" not in sys.modules


def test_the_finder_looks_on_the_path_of_python_at_the_time_of_the_call(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = source_finder()
    assert find("here.there") is None
    monkeypatch.syspath_prepend(str(package))
    found = find("here.there")
    assert found is not None
    assert found[1] == CODE


def test_installed_packages_are_found(tmp_path: Path) -> None:
    found = source_finder()("dataflower.errors")
    assert found is not None
    assert "class NotFound" in found[1]
    assert source_finder()("sys") is None


def test_a_source_is_read_in_the_encoding_that_it_declares(tmp_path: Path) -> None:
    latin, broken = tmp_path / "latin.py", tmp_path / "broken.py"
    latin.write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    broken.write_bytes(b"name = '\xff'\n")
    assert "é" in read_source(latin)
    assert read_source(broken) == read_source(tmp_path / "none.py") == ""


def test_files_that_can_not_be_read_are_none_for_nested_workflows(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: 1\n")
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    assert file_reader(str(tmp_path / "a.yaml")) == "x: 1\n"
    assert file_reader(str(tmp_path / "none.yaml")) is None
    assert file_reader(str(tmp_path)) is None


def test_functions_lie_beside_the_file_on_the_code_path_or_in_the_working_directory(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = package / "w.yaml"
    beside.write_text(YAML)
    assert load_file(beside).stages["s"].input_ports[0].name == "x"
    away = tmp_path / "away"
    away.mkdir()
    (away / "w.yaml").write_text(YAML)
    with pytest.raises(WorkflowInvalid, match="here"):
        load_file(away / "w.yaml")
    assert load_file(away / "w.yaml", code_path=[package]).name == "w"
    monkeypatch.chdir(package)
    assert load_file(away / "w.yaml").name == "w"


def test_a_profile_is_laid_over_the_file(package: Path) -> None:
    file = package / "w.yaml"
    file.write_text(YAML)
    assert load_file(file).stages["s"].scaling.max_replicas is None
    assert load_file(file, profile="wide").stages["s"].scaling.max_replicas == 5
    with pytest.raises(WorkflowInvalid, match="wide"):
        load_file(file, profile="wid")


def test_a_missing_file_is_not_found_and_a_bad_text_has_its_place(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.yaml"):
        load_file(tmp_path / "none.yaml")
    with pytest.raises(WorkflowInvalid) as caught:
        load_text("kind: [\n", "sent.yaml")
    assert caught.value.problems[0].file == "sent.yaml"
