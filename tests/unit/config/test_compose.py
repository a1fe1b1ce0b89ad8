"""Defaults < file < environment < flags, and what is said about a setting that can't be read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dataflower.config.compose import ConfigInvalid, compose, read
from dataflower.config.convert import host_config, resolved_code_path
from dataflower.config.settings import Config
from dataflower.host.database import JournalUnreadable
from dataflower.host.settings import HostConfig


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "dataflower.toml").write_text("port = 1\nmax_containers = 2\ncpus = 3\n")
    environment = {"DATAFLOWER_MAX_CONTAINERS": "20", "DATAFLOWER_CPUS": "30"}
    composed = compose({"cpus": 300, "server": None}, environment=environment, directory=tmp_path)
    config = composed.config
    assert (config.port, config.max_containers, config.cpus) == (1, 20, 300)
    assert config.server == Config().server
    assert str(composed.origins["port"]) == f"file {tmp_path}/dataflower.toml"
    assert str(composed.origins["max_containers"]) == "environment DATAFLOWER_MAX_CONTAINERS"
    assert str(composed.origins["cpus"]) == "flag"
    assert str(composed.origins["server"]) == "default"


def test_yaml_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("state_dir: /tmp/state\ncode_path: [a, b]\n")
    config = compose(file=file, environment={}).config
    assert config.state_dir == Path("/tmp/state")
    assert config.code_path == ("a", "b")


def test_a_variable_that_sets_nothing_is_noted(tmp_path: Path) -> None:
    environment = {"DATAFLOWER_MAX_CONTAINER": "2", "DATAFLOWER_CACHE": "/tmp", "DATAFLOWER_CPUS": "1", "PATH": "/bin"}
    (note,) = compose(environment=environment, directory=tmp_path).notes
    assert note == "DATAFLOWER_MAX_CONTAINER is set, and sets nothing (did you mean 'DATAFLOWER_MAX_CONTAINERS'?)"


def test_without_any_source_there_are_the_defaults(tmp_path: Path) -> None:
    assert compose(environment={}, directory=tmp_path).config == Config()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("drain_timeout_s", "500ms", 0.5),
        ("drain_timeout_s", "2m", 120.0),
        ("drain_timeout_s", 3, 3.0),
        ("host_arena_bytes", "4GiB", 4 * 2**30),
        ("host_arena_bytes", "1.5MB", 1_500_000),
        ("port", "0", 0),
        ("code_path", f"a{os.pathsep}b", ("a", "b")),
        ("code_path", ["a"], ("a",)),
        ("api_keys", "k1,k2", ("k1", "k2")),
        ("reflection", "off", False),
        ("reflection", True, True),
        ("tls_cert_file", "/a/b", Path("/a/b")),
        ("tls_cert_file", "none", None),
        ("server", "gpu-1.lan:8001", "gpu-1.lan:8001"),
        ("server", "[::1]:8001", "[::1]:8001"),
        ("server", "dns:///gpu-1:8001", "dns:///gpu-1:8001"),
        ("server", "unix:/run/dataflower.sock", "unix:/run/dataflower.sock"),
    ],
)
def test_text_becomes_the_type_of_the_setting(name: str, value: object, expected: object) -> None:
    assert read(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("port", "x", "whole number"),
        ("port", True, "expected int"),
        ("server", "gpu-1", "HOST:PORT"),
        ("server", "unix:", "HOST:PORT"),
        ("reflection", "perhaps", "true or false"),
        ("drain_timeout_s", "5 parsecs", "is not a duration"),
        ("host_arena_bytes", "much", "is not a size"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(name, value)


def test_all_problems_at_once_each_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "dataflower.toml"
    file.write_text('# settings\nprot = 1\ncpus = "many"\nqqqq = 1\n')
    with pytest.raises(ConfigInvalid) as caught:
        compose({"port": "y"}, environment={"DATAFLOWER_MAX_CONTAINERS": "z"}, directory=tmp_path)
    unknown, file_value, other, variable, flag = caught.value.message.splitlines()
    assert unknown == f"{file}:2:1: unknown setting 'prot' (did you mean 'port'?)"
    assert file_value.startswith(f"{file}:3:1: cpus: expected a whole number")
    assert other == f"{file}:4:1: unknown setting 'qqqq' (`dataflower config` lists the settings)"
    assert variable.startswith("DATAFLOWER_MAX_CONTAINERS: ")
    assert flag.startswith("--port: ")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("c.toml", "a = 1\nb = = 2\n", 2),
        ("c.toml", "port = 1\nserver = [1\n", 2),
        ("c.toml", "x = " + "[" * 20000, 1),
        ("c.yaml", "a: 1\nb: [1\n", 3),
        ("c.yaml", "port: 2001-99-99\n", 1),
        ("c.yaml", "[" * 20000, 1),
        ("c.yaml", "? [a]\n: 1\n", 1),
        ("c.yaml", "8: 1\n", 1),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, line: int) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigInvalid, match=rf"{name}:{line}:"):
        compose(file=tmp_path / name, environment={})


@pytest.mark.parametrize(("name", "text"), [("c.toml", "port = \n"), ("c.yaml", "port: [\n")])
def test_a_broken_file_is_said_to_be_no_file_of_its_kind(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigInvalid, match=rf"{name}:\d:\d: not valid {name[2:].upper()}: "):
        compose(file=tmp_path / name, environment={})


def test_the_host_gets_its_settings_under_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(state_dir=tmp_path, max_containers=3, code_path=(".", "lib"))
    made = host_config(config, stop_grace_s=1.0)
    assert isinstance(made, HostConfig)
    assert (made.state_dir, made.max_containers, made.stop_grace_s) == (tmp_path, 3, 1.0)
    assert made.code_path == resolved_code_path(config) == (str(tmp_path), str(tmp_path / "lib"))


def test_what_an_error_of_the_host_tells_to_set_can_be_set() -> None:
    error = JournalUnreadable(Path("journal"), "file is not a database")
    (name,) = re.findall(r"set `(\w+)`", error.message)
    composed = compose(environment={f"DATAFLOWER_{name.upper()}": "1"}, directory=Path("/"))
    assert not composed.notes
    assert getattr(host_config(composed.config), name) is True


def test_defaults_are_those_of_the_host() -> None:
    config, host = Config(), HostConfig()
    for name in ("cpus", "max_containers", "drain_timeout_s", "container_arena_bytes", "host_arena_bytes"):
        assert getattr(config, name) == getattr(host, name)
