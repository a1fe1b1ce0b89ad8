"""The host's border: inputs checked and packed, outputs recorded, logs found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflower.channel.views import Views
from dataflower.errors import InvalidArgument, ResourceExhausted
from dataflower.host import logs
from dataflower.host.input_arenas import InputArenas
from dataflower.host.inputs import split_inputs
from dataflower.host.processes import describe_exit
from dataflower.host.recording import Recording
from dataflower.host.values import Border, fingerprint, read_blob, record_inputs
from dataflower.spec.function import Kind, Port, PortType

MIB = 1024 * 1024


@pytest.fixture
def border() -> Iterator[Border]:
    arenas = InputArenas(8 * MIB, lambda number, nbytes, fd: None, lambda number: None)
    yield Border(arenas, Views(), 6 * MIB)
    assert arenas.statistics().slots == 0
    arenas.close()


def test_a_full_arena_is_an_error_and_not_a_wait(border: Border) -> None:
    held = border.pack("w", {"x": np.zeros(5 * MIB, np.uint8)})
    with pytest.raises(ResourceExhausted):
        border.pack("w", {"x": np.zeros(5 * MIB, np.uint8)})
    border.release(held)


def test_too_large_inputs_are_refused_and_freed(border: Border) -> None:
    with pytest.raises(ResourceExhausted, match="more than the allowed"):
        border.pack("w", {"x": np.zeros(4 * MIB, np.uint8), "y": np.zeros(3 * MIB, np.uint8)})


def test_a_blob_gives_back_what_went_in() -> None:
    inputs = {"text": "x", "deep": {"a": [1, None, 2.5, b"raw"]}, "array": np.arange(20_000, dtype=np.int32)}
    read = read_blob(record_inputs(inputs))
    np.testing.assert_array_equal(read.pop("array"), inputs.pop("array"))
    assert read == inputs


def test_fingerprints_look_through_the_order_of_keys() -> None:
    assert fingerprint({"a": {"x": 1, "y": [2]}, "b": 3}) == fingerprint({"b": 3, "a": {"y": [2], "x": 1}})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": np.zeros(3)}) != fingerprint({"a": np.ones(3)})


def test_a_recording_stops_at_its_size(border: Border) -> None:
    packed = border.pack("w", {"x": "a" * 100})["x"]
    small, large = Recording(border, 150), Recording(border, 1000)
    for recording in (small, large):
        recording.add("x", 0, packed)
        recording.add("x", 1, packed)
        recording.add_stream("none")
    assert small.blob() is None
    blob = large.blob()
    assert blob is not None
    assert read_blob(blob) == {"x": ["a" * 100] * 2, "none": []}


PORTS = {
    "n": Port("n", PortType(Kind.INT)),
    "name": Port("name", PortType(Kind.STRING), optional=True, default="anon"),
    "items": Port("items", PortType(Kind.INT), stream=True, optional=True),
}


def test_defaults_are_put_in_and_streams_set_apart() -> None:
    assert split_inputs("w", PORTS, {"n": 1}) == ({"n": 1, "name": "anon"}, {"items": []})
    assert split_inputs("w", PORTS, {"n": 1, "items": [1, 2]})[1] == {"items": [1, 2]}
    assert split_inputs("w", PORTS, {"n": 1}, ["items"])[1] == {}


@pytest.mark.parametrize(
    ("inputs", "opened", "message"),
    [
        ({}, (), "'n' of workflow 'w' is missing"),
        ({"n": 1, "nam": "x"}, (), "did you mean 'name'"),
        ({"n": 1}, ("n",), "is a value, not a stream"),
        ({"n": 1, "items": [1]}, ("items",), "whole and open"),
        ({"n": 1, "items": 3}, (), "give a list"),
        ({"n": 1, "items": [1, "two"]}, (), "items"),
        ({"n": "1"}, (), "n"),
    ],
)
def test_what_does_not_fit_is_named(inputs: dict[str, Any], opened: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        split_inputs("w", PORTS, inputs, opened)


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    path = logs.stage_log(tmp_path, "flow", "outer/inner")
    assert logs.tail(tmp_path, "flow", "outer/inner") == []
    descriptor = logs.open_log(path)
    os.write(descriptor, b"".join(b"line %d\n" % i for i in range(20_000)))
    os.close(descriptor)
    assert logs.tail(tmp_path, "flow", "outer/inner", 2) == ["line 19998", "line 19999"]
    assert len(logs.tail(tmp_path, "flow", "outer/inner", 15_000)) == 15_000
    assert logs.tail(tmp_path, "flow", "outer/inner", 0) == []
    assert logs.logged_stages(tmp_path, "flow") == ("outer/inner",)


def test_a_log_stays_inside_its_folder(tmp_path: Path) -> None:
    assert logs.stage_log(tmp_path, "..", "../../etc/passwd").resolve().is_relative_to(tmp_path)


def test_a_long_log_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 3)
    path = tmp_path / "a.log"
    for text in (b"first", b"second"):
        descriptor = logs.open_log(path)
        os.write(descriptor, text)
        os.close(descriptor)
    assert path.read_bytes() == b"second"
    assert path.with_name("a.log.1").read_bytes() == b"first"


def test_exits_are_told_in_words() -> None:
    assert describe_exit(3) == "exited with status 3"
    assert "SIGSEGV" in describe_exit(-11)
    assert "signal 99" in describe_exit(-99)
