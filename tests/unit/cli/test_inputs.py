"""`name=value` on the command line."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataflower.cli.inputs import parse_inputs
from dataflower.errors import InvalidArgument, ResourceExhausted
from dataflower.spec.function import Kind, Port, PortType, Tensor


def port(kind: Kind, *, stream: bool = False) -> Port:
    return Port("x", PortType(kind), stream=stream)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("hello", "hello"), ('"5"', "5"), ("[1, 2]", [1, 2]), ("", ""), ("a=b", "a=b"), ("@@me", "@me")],
)
def test_without_ports_json_or_the_string(text: str, value: object) -> None:
    assert parse_inputs([f"x={text}"]) == {"x": value}


def test_a_string_port_takes_the_text_as_it_is() -> None:
    assert parse_inputs(["x=5"], [port(Kind.STRING)]) == {"x": "5"}


def test_a_long_value_that_does_not_fit_is_shown_by_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a" * 5_000_000)
    with pytest.raises(InvalidArgument) as refused:
        parse_inputs([f"x=@{tmp_path}/long.txt"], [port(Kind.INT)])
    assert refused.value.message == f"input 'x' takes int, not '{'a' * 100}'... (5000000 characters)"
    with pytest.raises(InvalidArgument, match=r"a'... \(1000 characters\) is not of the form name=value"):
        parse_inputs(["a" * 1000])


def test_a_tensor_port_takes_a_list() -> None:
    value = parse_inputs(["x=[[1, 2]]"], [Port("x", Tensor("FP32", ["N", 2]))])["x"]
    assert (value.dtype, value.shape) == (np.float32, (1, 2))


def test_whole_numbers_fit_a_tensor_of_floats() -> None:
    value = parse_inputs(["x=[1, 2, 3]"], [Port("x", Tensor("FP32"))])["x"]
    assert (value.dtype, value.tolist()) == (np.float32, [1.0, 2.0, 3.0])


def test_a_file_is_read_as_the_port_wants_it(tmp_path: Path) -> None:
    file = tmp_path / "in.json"
    file.write_text('{"a": 1}')
    assert parse_inputs([f"x=@{file}"], [port(Kind.JSON)]) == {"x": {"a": 1}}
    assert parse_inputs([f"x=@{file}"], [port(Kind.STRING)]) == {"x": '{"a": 1}'}
    assert parse_inputs([f"x=@{file}"], [port(Kind.BYTES)]) == {"x": b'{"a": 1}'}


@pytest.mark.parametrize("kind", [Kind.STRING, Kind.BYTES, Kind.JSON, Kind.ANY])
@pytest.mark.parametrize("stream", [False, True])
def test_of_a_file_without_end_no_more_is_read_than_a_message_takes(kind: Kind, stream: bool) -> None:
    with pytest.raises(ResourceExhausted, match="/dev/zero is larger than the server's max_message_bytes, 1000"):
        parse_inputs(["x=@/dev/zero"], [port(kind, stream=stream)], max_bytes=1000)


def test_files_up_to_the_limit_are_read(tmp_path: Path) -> None:
    file = tmp_path / "in.json"
    file.write_text("[" + ", ".join(["0.1234567890123456"] * 25) + "]")
    array = parse_inputs([f"x=@{file}"], [Port("x", Tensor("FP32"))], max_bytes=100)["x"]
    assert (array.nbytes, file.stat().st_size) == (100, 500)
    file.write_bytes(bytes(100))
    assert parse_inputs([f"x=@{file}"], [port(Kind.BYTES)], max_bytes=100) == {"x": bytes(100)}
    with pytest.raises(ResourceExhausted, match="larger than"):
        parse_inputs([f"x=@{file}"], [port(Kind.BYTES)], max_bytes=99)


def test_an_array_file_becomes_a_tensor(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.arange(3))
    assert parse_inputs([f"x=@{tmp_path}/in.npy"])["x"].tolist() == [0, 1, 2]


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([object], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        parse_inputs([f"x=@{tmp_path}/in.npy"])


def test_a_dash_reads_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"from stdin")))
    assert parse_inputs(["x=@-"], [port(Kind.STRING)]) == {"x": "from stdin"}


def test_binary_files_go_where_anything_goes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xff\xfe\x00")
    assert parse_inputs([f"x=@{tmp_path}/f"], [port(Kind.ANY)]) == {"x": b"\xff\xfe\x00"}
    with pytest.raises(InvalidArgument, match="is not text"):
        parse_inputs([f"x=@{tmp_path}/f"], [port(Kind.STRING)])


def test_a_stream_takes_a_list_or_lines(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a\nb\n")
    assert parse_inputs(["x=[1, 2]"], [port(Kind.INT, stream=True)]) == {"x": [1, 2]}
    assert parse_inputs([f"x=@{tmp_path}/lines"], [port(Kind.STRING, stream=True)]) == {"x": ["a", "b"]}


@pytest.mark.parametrize(
    ("pairs", "ports", "message"),
    [
        (["x"], None, "not of the form name=value"),
        (["=1"], None, "not of the form name=value"),
        (["x=1", "x=2"], None, "given twice"),
        (["y=1"], [port(Kind.INT)], "no input 'y' .the workflow takes x."),
        (["x=a"], [port(Kind.INT)], "takes int, not 'a'"),
        (["x=true"], [port(Kind.INT)], "takes int, not True"),
        (["x=1"], [port(Kind.BOOL)], "takes bool"),
        (["x=5"], [port(Kind.INT, stream=True)], "is a stream"),
        (["x=@/no/such"], [port(Kind.INT)], "can't read /no/such: No such file"),
        (["x=[1, [2]]"], [Port("x", Tensor("FP32"))], "not a FP32"),
        (["x=[1, 2"], [Port("x", Tensor("FP32"))], "not valid JSON: .* .a list, or @file.npy"),
        (["x=[1.5]"], [Port("x", Tensor("INT32"))], "can't hold these numbers exactly"),
        (["x=[300]"], [Port("x", Tensor("UINT8"))], "can't hold these numbers exactly"),
        (['x=["a"]'], [Port("x", Tensor("FP32"))], "not a FP32"),
    ],
)
def test_what_does_not_fit_is_refused(pairs: list[str], ports: list[Port] | None, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_inputs(pairs, ports)
