"""The function unit on an in-memory data unit: what goes in, what comes out, what fails how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from dataflower import wire
from dataflower.channel import tensor
from dataflower.channel.arena import Arena
from dataflower.channel.tensor import Uncopied
from dataflower.container import failure, loops
from dataflower.container.failure import TypeMismatch, user_traceback
from dataflower.container.function_unit import FunctionUnit
from dataflower.container.running import RunningTask
from dataflower.container.stream import StreamReader
from dataflower.container.target import bind
from dataflower.errors import Code
from dataflower.wire import ErrorRecord, InputPort, OutputPort, RunTask, Value


@pytest.fixture(autouse=True)
def no_loop_left() -> Iterator[None]:
    yield
    loops.close()


class MemoryData:
    """A data unit without sockets: values stay Python objects."""

    arena = cast(Arena, None)

    def __init__(self, inputs: dict[str, Any], streams: dict[str, list[Any]]) -> None:
        self.inputs = inputs
        self.items: list[dict[str, Any]] = []
        self.outputs: dict[str, Any] | None = None
        self.error: ErrorRecord | None = None
        self._streams = streams
        self._tasks = 1

    def next_task(self) -> RunningTask | None:
        if not self._tasks:
            return None
        self._tasks = 0
        entries: list[wire.TaskInput] = [wire.Single(name, Value()) for name in self.inputs]
        entries += [wire.Opened(name, (), True) for name in self._streams]
        task = RunningTask(RunTask(1, tuple(entries), credit_items=100, credit_bytes=1000), 0.0)
        for name, items in self._streams.items():
            task.streams[name] = StreamReader(
                task,
                name,
                tuple(pack(item) for item in items),
                True,
                decode=lambda value: tensor.decode(value, None),
                report=lambda reader, task: None,
            )
        return task

    def fetch(self, task: RunningTask) -> dict[str, Any]:
        return {**self.inputs, **task.streams}

    def send_item(self, task: RunningTask, ports: Mapping[str, Any]) -> None:
        self.items.append(dict(ports))

    def encode_outputs(
        self,
        task: RunningTask,
        ports: Mapping[str, Any],
        starve: Callable[[int], bool] | None = None,
        uncopied: Uncopied | None = None,
    ) -> dict[str, Value]:
        return cast("dict[str, Value]", dict(ports))

    def finish_later(
        self, task: RunningTask, ports: dict[str, Any], uncopied: Uncopied, outputs: dict[str, Value]
    ) -> bool:
        raise AssertionError("nothing here has to be copied")

    def finish(self, task: RunningTask, outputs: dict[str, Value]) -> None:
        self.outputs = outputs

    def starve(self, task: RunningTask, released: int) -> bool:
        return task.reason is not None

    def fail(self, task: RunningTask, error: ErrorRecord) -> None:
        self.error = error


def pack(value: Any) -> Value:
    return tensor.encode(value, arena=None, views=None)


OUT = (OutputPort("out"),)
STREAM = (OutputPort("out", stream=True),)
MIXED = (OutputPort("items", stream=True), OutputPort("more", stream=True), OutputPort("total"))


def run(
    call: Any,
    inputs: dict[str, Any] | None = None,
    *,
    outputs: tuple[OutputPort, ...] = OUT,
    ports: tuple[InputPort, ...] = (),
    constants: dict[str, Any] | None = None,
    streams: dict[str, list[Any]] | None = None,
) -> MemoryData:
    data = MemoryData(inputs or {}, streams or {})
    FunctionUnit(bind(call, constants), data, inputs=ports, outputs=outputs, stage="stage").serve()
    return data


def error_of(data: MemoryData) -> ErrorRecord:
    assert data.error is not None
    return data.error


class TestOutputs:
    def test_one_port_takes_the_value_itself(self) -> None:
        assert run(lambda: {"a": 1}).outputs == {"out": {"a": 1}}
        assert run(lambda: None).outputs == {"out": None}

    def test_several_ports_take_a_dict_and_some_may_be_absent(self) -> None:
        ports = (OutputPort("a"), OutputPort("b"))
        assert run(lambda: {"a": 1, "b": 2}, outputs=ports).outputs == {"a": 1, "b": 2}
        assert run(lambda: {"b": 2}, outputs=ports).outputs == {"b": 2}
        assert run(lambda: None, outputs=ports).outputs == {}

    def test_a_generator_streams_items_and_returns_values(self) -> None:
        def work() -> Any:
            yield {"items": 1, "more": 2}
            yield {"more": 3}
            yield {}
            return {"total": 6}

        data = run(work, outputs=MIXED)
        assert data.items == [{"items": 1, "more": 2}, {"more": 3}, {}]
        assert data.outputs == {"total": 6}

    def test_lists_of_a_plain_function_are_zipped(self) -> None:
        data = run(lambda: {"items": [1, 2, 3], "more": (4,), "total": 9}, outputs=MIXED)
        assert data.items == [{"items": 1, "more": 4}, {"items": 2}, {"items": 3}]
        assert data.outputs == {"total": 9}

    def test_a_function_that_returns_a_generator_streams_as_well(self) -> None:
        assert run(lambda: (i for i in range(2)), outputs=STREAM).items == [{"out": 0}, {"out": 1}]

    def test_asynchronous_functions_and_generators(self) -> None:
        async def one() -> int:
            return 5

        async def many() -> Any:
            yield 1
            yield 2

        assert run(one).outputs == {"out": 5}
        assert run(many, outputs=STREAM).items == [{"out": 1}, {"out": 2}]

    def test_a_stream_input_is_an_iterator(self) -> None:
        assert run(sum_up, streams={"numbers": [1, 2, 3]}).outputs == {"out": 6}


def sum_up(numbers: Any) -> int:
    return sum(numbers)


class TestParameters:
    def test_constants_yield_to_inputs(self) -> None:
        def work(a: int, b: int = 0) -> tuple[int, int]:
            return a, b

        assert run(work, {"a": 1}, constants={"b": 2}).outputs == {"out": (1, 2)}
        assert run(work, {"a": 1, "b": 3}, constants={"b": 2}).outputs == {"out": (1, 3)}

    def test_any_input_goes_to_keywords_or_to_the_rest(self) -> None:
        def keywords(**values: int) -> dict[str, int]:
            return values

        def rest(first: int, *others: int) -> list[int]:
            return [first, *others]

        assert run(keywords, {"x": 1, "y": 2}).outputs == {"out": {"x": 1, "y": 2}}
        assert run(rest, {"b": 2, "first": 1, "c": 3}).outputs == {"out": [1, 2, 3]}

    def test_the_context_by_name_and_by_annotation(self) -> None:
        def by_name(context: Any) -> int:
            return int(context.attempt)

        def by_type(about: dataflower.Context) -> int:  # type: ignore[name-defined]  # noqa: F821
            return int(about.attempt)

        assert run(by_name).outputs == {"out": 1}
        assert run(by_type).outputs == {"out": 1}

    def test_a_torch_annotation_gives_torch_tensors(self) -> None:
        torch = pytest.importorskip("torch")

        def work(x: torch.Tensor, xs: list[torch.Tensor], plain: Any) -> list[str]:
            return [type(value).__name__ for value in (x, xs[0], plain)]

        array = np.ones(3)
        assert run(work, {"x": array, "xs": [array], "plain": array}).outputs == {
            "out": ["Tensor", "Tensor", "ndarray"]
        }


class TestErrors:
    @pytest.mark.parametrize(
        ("result", "ports", "words"),
        [
            (5, MIXED, "several outputs (items, more, total): return a dict from output to value, not an int"),
            ({"nope": 1}, MIXED, "return names the output 'nope'"),
            ({"items": 3}, MIXED, "output 'items' is a stream"),
            ("text", STREAM, "output 'out' is a stream: yield its items or return them as a list, not a str"),
            ("text", (OutputPort("out", kind="int"),), "expects int, got str"),
        ],
    )
    def test_results_that_do_not_fit(self, result: Any, ports: tuple[OutputPort, ...], words: str) -> None:
        error = error_of(run(lambda: result, outputs=ports))
        assert (error.code, error.kind, error.traceback) == (Code.INTERNAL, "TypeMismatch", "")
        assert words in error.message

    def test_yields_and_returns_that_do_not_fit(self) -> None:
        def yields(item: Any, returned: Any = None) -> Any:
            yield item
            return returned

        assert "none of its outputs is a stream" in error_of(run(yields, {"item": 1})).message
        both = {"item": {"items": 1}}
        assert "'total'" in error_of(run(yields, {"item": {"total": 1}}, outputs=MIXED)).message
        assert "'items'" in error_of(run(yields, {**both, "returned": {"items": 1}}, outputs=MIXED)).message
        returned = run(yields, {"item": 1, "returned": 2}, outputs=STREAM)
        assert "must return nothing, not an int" in error_of(returned).message

    def test_items_are_checked_and_a_generator_is_closed(self) -> None:
        closed = []

        def work() -> Any:
            try:
                yield 1
                yield "two"
                yield 3
            finally:
                closed.append(True)

        data = run(work, outputs=(OutputPort("out", stream=True, kind="int"),))
        assert data.items == [{"out": 1}]
        assert (error_of(data).kind, closed) == ("TypeMismatch", [True])

    def test_named_sizes_agree_within_a_task(self) -> None:
        square = OutputPort("out", kind="tensor", dtype="FP32", shape=("N", "N"))
        row = InputPort("x", kind="tensor", dtype="FP32", shape=("N",))

        def matrix(x: Any, n: int) -> Any:
            return np.zeros((n, n), np.float32)

        three = np.zeros(3, np.float32)
        assert run(matrix, {"x": three, "n": 3}, outputs=(square,), ports=(row,)).error is None
        error = error_of(run(matrix, {"x": three, "n": 4}, outputs=(square,), ports=(row,)))
        assert "N is 3 in this task" in error.message

    def test_inputs_that_do_not_fit_are_the_callers_fault(self) -> None:
        error = error_of(run(lambda x: x, {"x": "text"}, ports=(InputPort("x", kind="int"),)))
        assert (error.code, error.kind) == (Code.INVALID_ARGUMENT, "TypeMismatch")

    @pytest.mark.parametrize("raised", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
    def test_whatever_user_code_raises_is_reported(self, raised: BaseException) -> None:
        def work() -> None:
            raise raised

        error = error_of(run(work))
        assert (error.code, error.kind) == (Code.INTERNAL, type(raised).__name__)
        assert "in work" in error.traceback
        assert "dataflower/container" not in error.traceback

    def test_a_cause_is_shown_with_its_user_frames(self) -> None:
        def work() -> None:
            try:
                int("x")
            except ValueError as error:
                raise RuntimeError("outer") from error

        text = error_of(run(work)).traceback
        assert text.index("invalid literal") < text.index("RuntimeError: outer")

    def test_a_cause_that_was_hidden_shows_no_traceback(self) -> None:
        error = TypeMismatch("output: cannot send object")
        try:
            int("x")
        except ValueError as hidden:
            error.__context__, error.__suppress_context__ = hidden, True
        assert user_traceback(error) == ""

    def test_an_error_that_can_not_be_shown(self) -> None:
        class Rude(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no")

        def work() -> None:
            raise Rude

        error = error_of(run(work))
        assert (error.kind, error.message) == ("Rude", "(its message can't be shown: RuntimeError)")

    def test_an_error_that_can_not_be_changed(self) -> None:
        @dataclass(frozen=True)
        class Fixed(Exception):
            text: str

        def work() -> None:
            raise Fixed("no")

        assert error_of(run(work)).kind == "Fixed"

    def test_an_error_that_is_its_own_cause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(failure, "in_sandbox", True)

        def work() -> None:
            try:
                raise ValueError("no")
            except ValueError as error:
                raise error from error

        assert error_of(run(work)).message == "no"

    def test_an_error_that_is_no_unicode(self) -> None:
        def work() -> None:
            raise ValueError("no \udcff")  # as os.listdir spells a name that is not UTF-8

        error = error_of(run(work))
        assert error.message == "no \\udcff"
        assert wire.encode(error)


class CancelledMeanwhile(MemoryData):
    """Its tasks are cancelled while their inputs are fetched."""

    task: RunningTask

    def fetch(self, task: RunningTask) -> dict[str, Any]:
        self.task = task
        task.cancel("too late")
        return super().fetch(task)


def test_what_is_cancelled_while_it_fetches_has_not_begun() -> None:
    entered: list[Any] = []

    def enter(x: Any) -> None:
        entered.append(x)

    data = CancelledMeanwhile({"x": 1}, {})
    FunctionUnit(bind(enter, {}), data, inputs=(), outputs=OUT, stage="stage").serve()
    assert error_of(data).kind == "Cancelled"
    assert (entered, data.task.started) == ([], 0.0), "its trace must not say that it ran"


class Fetched(MemoryData):
    """The test can get at the task."""

    task: RunningTask

    def fetch(self, task: RunningTask) -> dict[str, Any]:
        self.task = task
        return super().fetch(task)


@pytest.mark.filterwarnings("error")
def test_a_coroutine_that_nobody_will_await_is_closed() -> None:
    made: list[Any] = []
    data = Fetched({"x": 1}, {})

    async def wait(x: Any) -> None:
        raise AssertionError("it was never to begin")

    def begin(x: Any) -> Any:
        data.task.reason = "cancelled as it was called"
        made.append(wait(x))
        return made[0]

    FunctionUnit(bind(begin, {}), data, inputs=(), outputs=OUT, stage="stage").serve()
    assert error_of(data).kind == "Cancelled"
    assert made[0].cr_frame is None
