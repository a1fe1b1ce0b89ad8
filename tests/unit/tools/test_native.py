import ast
import os
import zipfile

import pytest

from dataflower.llm.kernels import library
from tools import native


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    package = tmp_path / "dataflower" / "core"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "host.py").write_text("x = 1")
    monkeypatch.setattr(native, "ROOT", tmp_path)
    monkeypatch.setattr(native, "MODULES", ("dataflower/core/*.py",))
    monkeypatch.setattr(library, "PLACE", package)
    monkeypatch.setattr(native, "SHIPPED", ("dataflower", "pyproject.toml"))
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def test_what_is_compiled_is_there():
    names = [path.relative_to(native.ROOT).as_posix() for path in native.sources()]
    assert "dataflower/core/host.py" in names
    assert "dataflower/container/data_unit.py" in names
    assert not [name for name in names if name.endswith("__init__.py")]
    assert all((native.ROOT / name).exists() for name in native.SHIPPED)


# What gcc keeps for itself behind two underscores; mypyc puts one before the name of each attribute.
TAKEN = {"alignof", "asm", "attribute", "complex", "const", "extension", "func", "imag", "inline", "int128", "label"}
TAKEN |= {"real", "restrict", "signed", "thread", "typeof", "volatile"}


@pytest.mark.parametrize("path", native.sources(), ids=lambda path: path.stem)
def test_no_attribute_has_a_name_that_c_keeps_for_itself(path):
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {f"_{name}" for name in TAKEN}


@pytest.mark.parametrize("path", native.sources(), ids=lambda path: path.stem)
def test_no_compiled_coroutine_awaits_where_it_cleans_up(path):
    """What mypyc makes of it hands the error of one call on to the next."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.AsyncFunctionDef):
            guarded = [n for n in ast.walk(function) if isinstance(n, (ast.Try, ast.AsyncWith, ast.AsyncFor))]
            assert not [n for g in guarded for n in ast.walk(g) if isinstance(n, ast.Await)], function.name


def test_compiled_classes_stand_on_compiled_ones():
    """One over a class that is not crashes the collector. Those of these bases are left as they are by mypyc."""
    trees = [ast.parse(path.read_text()) for path in native.sources()]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    safe = {"ABC", "Enum", "IntEnum", "StrEnum", "Exception", "ValueError", "Protocol", "Struct"}
    safe |= {node.name for node in classes}
    found = {(node.name, ast.unparse(base).rpartition(".")[2]) for node in classes for base in node.bases}
    assert not {pair for pair in found if pair[1] not in safe}


def test_a_module_that_moved_is_named(checkout, monkeypatch):
    monkeypatch.setattr(native, "MODULES", ("dataflower/core/*.py", "dataflower/core/gone/*.py"))
    with pytest.raises(SystemExit, match="gone"):
        native.sources()


def test_compiled_modules_are_stale_by_date_and_can_be_removed(checkout):
    source = checkout / "dataflower/core/host.py"
    machine = source.with_name(f"host{native.SUFFIX}")
    assert native.stale() == []
    machine.touch()
    os.utime(source, (1, 1))
    assert native.stale() == []
    os.utime(machine, (0, 0))
    assert native.stale() == ["dataflower/core/host.py is newer than its compiled form"]
    native.remove()
    assert not machine.exists()
    assert source.exists()


def test_a_wheel_is_made_from_a_copy_without_what_was_compiled_here(checkout, monkeypatch):
    (checkout / "dataflower/core" / f"host{native.SUFFIX}").touch()
    seen = []

    def pip(command, *, env):
        assert env[native.SWITCH] == "1"
        made, copy = map(native.Path, command[-2:])
        seen.extend(sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()))
        made.mkdir()
        with zipfile.ZipFile(made / "dataflower-1-cp311-cp311-linux_x86_64.whl", "w") as wheel:
            wheel.writestr("x", "")

    monkeypatch.setattr(native, "_run", pip)
    found = native.wheel(checkout / "dist")
    assert found == checkout / "dist/dataflower-1-cp311-cp311-linux_x86_64.whl"
    assert found.exists()
    assert seen == ["dataflower/core/__init__.py", "dataflower/core/host.py", "pyproject.toml"]
