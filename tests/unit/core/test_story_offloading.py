"""Stages with weights under a cap on memory, seen from outside: who leaves for whom, and who is never touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.config import CoreConfig
from dataflower.core.program import compile_program
from dataflower.spec.workflow import Resources, Scaling, Workflow
from dataflower.testing.payloads import plain
from dataflower.testing.story import Story, stage, workflow

MIB = 1024 * 1024
BACKBONE = 400 * MIB
OWN = 100 * MIB


def lora(name: str, backbone: str = "base", scaling: Scaling | None = None) -> Workflow:
    """A function on a backbone."""
    made = workflow(
        [
            stage(
                name,
                {"x": "inputs.x"},
                ["deltas*"],
                model=backbone,
                scaling=scaling or Scaling(max_replicas=1, concurrency=4, keep_alive_s=3600),
                resources=Resources(memory_bytes=OWN),
            )
        ],
        {"deltas": f"{name}.deltas"},
    )
    return Workflow(name, made.stages, made.inputs, made.outputs)


def declared(name: str, memory_bytes: int) -> Workflow:
    """One that may take so much memory."""
    made = lora(name)
    only = replace(made.stages[name], resources=Resources(memory_bytes=memory_bytes))
    return replace(made, stages={name: only})


class Host(Story):
    """Containers open their weights as they start, and have 100 MiB of their own. Who is told to stop, stops later."""

    def __init__(self, *workflows: Workflow, cap: int, batches: int = 4) -> None:
        config = CoreConfig(device_batches=batches, device_memory_bytes=cap)
        self.models = {item.name: next(iter(item.stages.values())).model for item in workflows}
        super().__init__(config=config)
        for item in workflows:
            self.tell(events.WorkflowAdded(f"{item.name}@1", compile_program(item)))
        for model in dict.fromkeys(self.models.values()):
            self.tell(events.WeightsSized(model, BACKBONE))

    def hello(self) -> None:
        while self.starting:
            number = self.starting.pop(0)
            model = self.models[self.stages[number]]
            phase = wire.StartPhase(wire.StartKind.WEIGHTS, model, 0.2, BACKBONE)
            said = wire.Hello(wire.VERSION, 1, 0.1, 0.4, (phase,))
            self.tell(events.ContainerSaid(number, said))
            self.tell(events.ContainerSized(number, OWN))

    def call(self, name: str, invocation: str) -> None:
        self.invoke(invocation, key=f"{name}@1", x=1)

    def message(self, invocation: str) -> tuple[int, wire.RunTask]:
        found = None
        for command in self.said:
            match command:
                case commands.Tell(number, wire.RunTask() as told) if told.invocation == invocation:
                    found = number, told
        assert found is not None, f"{invocation} was not given out"
        return found

    def begun(self, invocation: str) -> bool:
        return any(message.invocation == invocation for message in self.told(wire.RunTask))

    def speak(self, invocation: str) -> None:
        number, told = self.message(invocation)
        self.tell(events.ContainerSaid(number, wire.TokenSent(told.task, 0, {"deltas": plain("t")})))

    def finish(self, invocation: str) -> None:
        number, told = self.message(invocation)
        self.tell(events.ContainerSaid(number, wire.TaskDone(told.task, {}, 1, wire.Times())))

    def serve(self, name: str, invocation: str) -> None:
        """A call from its beginning to its end."""
        self.call(name, invocation)
        self.speak(invocation)
        self.finish(invocation)

    def dropped(self) -> list[str]:
        return [command.model for command in self.said if isinstance(command, commands.DropWeights)]

    def drop(self, model: str, gone: bool = True) -> None:
        self.tell(events.WeightsDropped(model, gone))

    @property
    def state(self) -> Any:
        return self.core.devices()[0]


def test_backbone_is_counted_once_and_containers_each() -> None:
    told = Host(lora("a"), lora("b"), cap=2000 * MIB)
    told.serve("a", "a1")
    told.serve("b", "b1")
    assert told.state.used_bytes == BACKBONE + 2 * OWN
    assert told.leaving == []


def test_idle_function_that_is_called_least_makes_room() -> None:
    told = Host(lora("a"), lora("b"), lora("c"), cap=BACKBONE + 2 * OWN)
    told.serve("a", "a1")
    told.serve("b", "b1")
    told.serve("a", "a2")
    told.call("c", "c1")
    assert told.leaving == told.containers_of("b")
    assert told.dropped() == []  # the backbone is worth more to all of them
    assert not told.begun("c1")
    told.leave()
    assert told.begun("c1")
    assert told.state.used_bytes == BACKBONE + 2 * OWN
    assert told.state.offloaded == 1


def test_running_batch_is_never_touched_and_its_weights_neither() -> None:
    told = Host(lora("a"), lora("b"), lora("c", "other"), cap=2 * BACKBONE + OWN)
    told.call("a", "a1")
    told.speak("a1")
    told.serve("b", "b1")
    told.call("c", "c1")  # needs 500: b's container would not be enough, and the backbone is a's
    assert told.leaving == []
    assert told.dropped() == []
    told.finish("a1")
    assert sorted(told.leaving) == sorted(told.containers_of("a") + told.containers_of("b"))[: len(told.leaving)]
    told.leave()
    for model in told.dropped():
        told.drop(model)
    assert told.begun("c1")


def test_weights_leave_with_all_who_use_them() -> None:
    told = Host(lora("a"), lora("b"), lora("c", "other"), cap=BACKBONE + 2 * OWN)
    told.serve("a", "a1")
    told.serve("b", "b1")
    told.call("c", "c1")
    assert sorted(told.leaving) == sorted(told.containers_of("a") + told.containers_of("b"))
    assert told.dropped() == ["base"]
    told.leave()
    assert not told.begun("c1")
    told.drop("base")
    assert told.begun("c1")
    assert told.state.used_bytes == BACKBONE + OWN


def test_weights_that_others_use_stay_and_the_cap_gives_way_at_last() -> None:
    told = Host(lora("a"), lora("c", "other"), cap=BACKBONE + OWN)
    told.serve("a", "a1")
    told.call("c", "c1")
    told.leave()
    told.drop("base", gone=False)
    assert told.begun("c1")
    assert told.state.used_bytes == 2 * BACKBONE + OWN


def test_function_whose_weights_are_too_large_is_refused() -> None:
    told = Host(lora("a"), cap=200 * MIB)
    told.call("a", "a1")
    told.wait(0.01)
    failure = told.finished["a1"]
    assert failure is not None
    assert (failure.kind, failure.stage) == ("StageTooLarge", "a")
    assert "stage 'a' needs 400 MiB of memory (400 MiB of weights base)" in failure.message
    assert "device_memory_bytes allows 200 MiB: set it to 400MiB at least" in failure.message
    assert told.containers_of("a") == []


def test_function_that_turns_out_to_be_too_large_is_stopped_and_refused() -> None:
    told = Host(lora("a"), lora("b", "small"), cap=BACKBONE + OWN - MIB)
    told.call("a", "a1")  # a container is thought to take what it may: it starts when nobody else is there
    killed = [command for command in told.said if isinstance(command, commands.KillContainer)]
    assert len(killed) == 1
    assert "stage 'a' needs 500 MiB of memory (400 MiB of weights base, 100 MiB for a container)" in killed[0].reason
    told.tell(events.ContainerExited(killed[0].container, killed[0].reason))
    failure = told.finished["a1"]
    assert failure is not None
    assert "device_memory_bytes allows 499 MiB" in failure.message
    told.wait(60)
    told.call("a", "a2")
    told.wait(0.01)
    again = told.finished["a2"]
    assert again is not None
    assert again.kind == "StageTooLarge"
    assert len([command for command in told.said if isinstance(command, commands.StartContainer)]) == 1


def test_function_that_is_only_thought_to_be_too_large_runs_alone() -> None:
    told = Host(lora("a"), lora("b"), cap=BACKBONE + OWN)
    told.tell(events.WorkflowAdded("large@1", compile_program(declared("large", 3 * OWN))))
    told.models["large"] = "base"
    told.serve("a", "a1")
    told.call("large", "l1")
    assert told.leaving == told.containers_of("a")
    told.leave()
    for model in told.dropped():
        told.drop(model)
    assert told.begun("l1")


def test_who_is_kept_out_for_long_gets_the_place_of_one_that_never_rests() -> None:
    told = Host(lora("a"), lora("b"), cap=BACKBONE + OWN)
    told.call("a", "a1")
    told.speak("a1")
    told.call("b", "b1")
    number = 1
    for _ in range(40):  # there is always one more for a
        number += 1
        told.call("a", f"a{number}")
        if not told.begun(f"a{number}"):
            break
        told.speak(f"a{number}")
        told.finish(f"a{number - 1}")
        told.wait(0.1)
    else:
        raise AssertionError("a goes on for ever")
    assert told.leaving == []  # it takes no more, and what runs goes on
    told.finish(f"a{number - 1}")
    told.leave()
    assert told.begun("b1")
    told.speak("b1")
    told.finish("b1")
    told.leave()
    assert told.begun(f"a{number}")


def test_container_that_has_grown_drives_out_the_idle() -> None:
    told = Host(lora("a"), lora("b"), cap=BACKBONE + 2 * OWN)
    told.serve("b", "b1")
    told.wait(2)
    told.call("a", "a1")
    told.speak("a1")
    a, b = told.containers_of("a"), told.containers_of("b")
    told.tell(events.ContainerSized(a[0], OWN + 50 * MIB))
    assert told.leaving == b
    told.leave()
    told.finish("a1")
    assert commands.SizeContainer(a[0]) not in told.said  # it was a moment ago
    told.wait(1.1)
    assert told.said.count(commands.SizeContainer(a[0])) == 1
    assert told.state.used_bytes == BACKBONE + OWN + 50 * MIB


def test_replicas_that_are_to_be_kept_stay() -> None:
    kept = Scaling(min_replicas=1, max_replicas=1, concurrency=4)
    told = Host(lora("a", scaling=kept), lora("b"), lora("c"), cap=BACKBONE + 2 * OWN)
    told.serve("b", "b1")
    for number in range(3):
        told.serve("b", f"more{number}")
    told.call("c", "c1")
    assert told.leaving == told.containers_of("b")


def test_removed_functions_weights_are_the_first_to_go() -> None:
    told = Host(lora("a"), lora("b", "other"), lora("c", "third"), cap=2 * BACKBONE + 2 * OWN)
    told.serve("a", "a1")
    told.serve("b", "b1")
    told.release("a1")
    told.tell(events.WorkflowRemoved("a@1"))
    told.leave()
    told.call("c", "c1")
    assert told.dropped() == ["base"]
    assert told.leaving == []
    told.drop("base")
    assert told.begun("c1")


def grown(told: Host, name: str, nbytes: int) -> int:
    """A container has taken more memory for keys and values."""
    (number,) = told.containers_of(name)
    told.tell(events.ContainerSized(number, OWN + nbytes))
    return number


def test_what_an_idle_container_has_kept_of_prompts_goes_before_itself() -> None:
    told = Host(lora("a"), lora("b"), cap=BACKBONE + 2 * OWN + 20 * MIB)
    told.serve("a", "a1")
    number = grown(told, "a", 60 * MIB)
    told.call("b", "b1")
    assert told.said[-1] == commands.Tell(number, wire.Trim()) or told.told(wire.Trim)
    assert told.leaving == []
    assert not told.begun("b1")
    told.tell(events.ContainerSaid(number, wire.Trimmed()))
    assert told.said.count(commands.SizeContainer(number)) >= 1
    told.tell(events.ContainerSized(number, OWN + 2 * MIB))
    assert told.begun("b1")
    assert told.containers_of("a") == [number]


def test_container_that_gives_nothing_back_leaves_itself() -> None:
    told = Host(lora("a"), lora("b"), cap=BACKBONE + 2 * OWN + 20 * MIB)
    told.serve("a", "a1")
    number = grown(told, "a", 60 * MIB)
    told.call("b", "b1")
    told.tell(events.ContainerSaid(number, wire.Trimmed()))
    told.tell(events.ContainerSized(number, OWN + 60 * MIB))
    assert len(told.told(wire.Trim)) == 1
    assert told.leaving == [number]
    told.leave()
    assert told.begun("b1")


def test_keys_and_values_of_a_running_task_stay() -> None:
    told = Host(lora("a"), lora("b"), cap=BACKBONE + 2 * OWN + 20 * MIB)
    told.call("a", "a1")
    told.speak("a1")
    grown(told, "a", 60 * MIB)
    told.call("b", "b1")
    assert told.told(wire.Trim) == []
    told.finish("a1")
    assert len(told.told(wire.Trim)) == 1


def test_container_that_dies_while_it_gives_back_is_not_waited_for() -> None:
    told = Host(lora("a"), lora("b"), cap=BACKBONE + 2 * OWN + 20 * MIB)
    told.serve("a", "a1")
    number = grown(told, "a", 60 * MIB)
    told.call("b", "b1")
    told.exit(number)
    assert told.begun("b1")


LIBRARIES = ("torch", "functions.llm")
IMPORTED = 150 * MIB


def with_libraries(name: str, backbone: str = "base", libraries: tuple[str, ...] = LIBRARIES) -> Workflow:
    made = lora(name, backbone)
    stages = {name: replace(made.stages[name], preload=libraries)}
    return Workflow(name, stages, made.inputs, made.outputs)


def plain_stage(name: str, libraries: tuple[str, ...]) -> Workflow:
    """A workflow without weights, whose containers come from the same fork server."""
    made = workflow([stage(name, {"x": "inputs.x"}, preload=libraries)], {"r": f"{name}.out"})
    return Workflow(name, made.stages, made.inputs, made.outputs)


def unloaded(told: Host) -> list[tuple[str, ...]]:
    return [command.modules for command in told.said if isinstance(command, commands.Unload)]


def preloaded(told: Host) -> list[tuple[str, ...]]:
    return [command.modules for command in told.said if isinstance(command, commands.Preload)]


def imported(told: Host, libraries: tuple[str, ...] = LIBRARIES) -> None:
    told.tell(events.ZygoteStarted(libraries, 2.5, IMPORTED))


def test_libraries_are_counted_once_for_all_that_are_forked_from_them() -> None:
    told = Host(with_libraries("a"), with_libraries("b"), cap=2000 * MIB)
    imported(told)
    assert told.state.used_bytes == IMPORTED
    told.serve("a", "a1")
    told.serve("b", "b1")
    assert told.state.used_bytes == IMPORTED + BACKBONE + 2 * OWN
    rows = told.core.prepared(told.clock.monotonic())
    assert rows is not None
    assert {row.name: (row.nbytes, row.users) for row, _ in rows} == {
        "libraries torch,functions.llm": (IMPORTED, ("a/a", "b/b")),
        "weights base": (BACKBONE, ("a/a", "b/b")),
        "container a/a": (OWN, ("a/a",)),
        "container b/b": (OWN, ("b/b",)),
    }


def test_idle_fork_server_makes_room_when_nobody_needs_it_more() -> None:
    other = ("torch", "other")
    told = Host(with_libraries("a"), with_libraries("b", "second", other), cap=BACKBONE + OWN + IMPORTED)
    imported(told)
    told.serve("a", "a1")
    imported(told, other)  # and now the memory is nearly full
    told.call("b", "b1")
    # All that is there for `a` has to leave: the container before the weights, the libraries with both.
    assert (told.leaving, told.dropped(), unloaded(told)) == (told.containers_of("a"), ["base"], [LIBRARIES])
    assert not told.begun("b1")
    told.leave()
    told.drop("base")
    told.tell(events.ZygoteEnded(LIBRARIES))
    assert told.begun("b1")
    assert told.state.used_bytes == IMPORTED + BACKBONE + OWN
    told.speak("b1")
    told.finish("b1")
    before = len(preloaded(told))
    told.call("a", "a2")  # comes back: room is made for its libraries, too, and they are kept again
    told.leave()
    told.drop("second")
    told.tell(events.ZygoteEnded(other))
    assert told.begun("a2")
    assert preloaded(told)[before:] == [LIBRARIES]


def test_libraries_of_a_busy_function_stay() -> None:
    told = Host(with_libraries("a"), lora("b", "second"), cap=BACKBONE + OWN + IMPORTED)
    imported(told)
    told.call("a", "a1")
    told.speak("a1")
    told.call("b", "b1")
    assert (unloaded(told), told.leaving, told.dropped()) == ([], [], [])


def test_fork_server_that_others_use_is_not_counted_on() -> None:
    told = Host(
        with_libraries("a"),
        with_libraries("b", "second", ("torch", "other")),
        plain_stage("plain", LIBRARIES),
        cap=BACKBONE + OWN + IMPORTED // 2,
    )
    imported(told)
    told.call("plain", "p1")
    told.serve("a", "a1")
    told.call("b", "b1")
    assert unloaded(told) == []
    told.leave()
    told.drop("base")
    assert told.begun("b1")  # alone with what can't leave


def test_fork_server_that_does_not_end_is_given_up_on() -> None:
    other = with_libraries("b", "second", ("torch", "other"))
    told = Host(with_libraries("a"), other, cap=BACKBONE + OWN + IMPORTED // 2)
    imported(told)
    told.serve("a", "a1")
    told.call("b", "b1")
    assert unloaded(told) == [LIBRARIES]
    told.leave()
    told.drop("base")
    told.wait(11)
    assert told.begun("b1")  # as if there were no cap: nothing else can leave


def test_libraries_of_removed_workflows_are_let_go() -> None:
    told = Host(with_libraries("a"), with_libraries("b", libraries=("torch",)), cap=2000 * MIB)
    told.tell(events.WorkflowRemoved("a@1"))
    assert unloaded(told) == []  # `b` may come from there as well
    told.tell(events.WorkflowRemoved("b@1"))
    assert sorted(unloaded(told)) == [("torch",), LIBRARIES]
