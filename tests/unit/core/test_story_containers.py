"""The life of containers: started, idle, told to leave, dead before they were ready."""

from dataflower.core.commands import KillContainer, StartContainer, StopContainer
from dataflower.core.events import WorkflowAdded, WorkflowRemoved
from dataflower.core.host import CoreConfig
from dataflower.core.program import compile_program
from dataflower.errors import Code
from dataflower.spec.workflow import Catch, Credit, Retry, Scaling
from dataflower.testing.story import Story, stage, workflow

ONE = workflow([stage("a", {"x": "inputs.x"})], {"r": "a.out"})
AGAIN = Retry(errors=("ImportError", "ContainerCrashed"), max_attempts=2, interval_s=1.0, jitter="none")


def fan(*, deaf: bool = False, config: CoreConfig | None = None, items: int = 2, **fields) -> Story:
    """A producer that has sent some items to stage `b`, whose fields are given."""
    stages = [stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"t": "each a.t"}, **fields)]
    story = Story(workflow(stages, {"r": "gather b.out"}), config=config, deaf=deaf)
    story.invoke(x=1)
    story.hello()
    for item in range(items):
        story.emit("a", t=item)
    return story


def count(story: Story, kind: type) -> int:
    return sum(1 for command in story.said if isinstance(command, kind))


# --- starts that fail ---


def test_a_start_that_fails_takes_the_waiting_tasks_along():
    story = Story(ONE, deaf=True)
    story.invoke(x=1)
    story.start_failed()
    failure = story.failure
    assert failure is not None
    assert (failure.kind, failure.code, failure.stage, failure.attempt) == (
        "ImportError",
        Code.FAILED_PRECONDITION,
        "a",
        1,
    )
    assert story.starting == []


def test_a_start_that_fails_takes_along_several_waiting_tasks_of_one_invocation():
    story = fan(deaf=True, items=3, scaling=Scaling(max_replicas=1))
    story.done("a")
    story.start_failed()
    assert story.failure is not None
    assert (story.failure.kind, story.failure.stage) == ("ImportError", "b")
    assert story.core.statistics().invocations == 0


def test_a_start_that_fails_is_an_attempt():
    story = Story(workflow([stage("a", {"x": "inputs.x"}, retry=AGAIN)], {"r": "a.out"}), deaf=True)
    story.invoke(x=1)
    story.start_failed()
    assert story.finished == {}
    story.wait(0.99)
    assert story.starting == []
    story.wait(0.02)
    assert len(story.starting) == 1
    story.start_failed()
    assert story.failure is not None
    assert story.failure.attempt == 2


def test_a_start_that_fails_can_be_caught():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, catch=(Catch(output={"out": 5}),))], {"r": "a.out"}), deaf=True
    )
    story.invoke(x=1)
    story.start_failed()
    assert story.failure is None
    assert story.outputs == {"r": 5}


def test_after_a_start_that_failed_the_next_one_waits():
    story = Story(ONE, deaf=True)
    story.invoke("first", x=1)
    story.start_failed()
    story.invoke("second", x=1)
    assert story.starting == []
    story.wait(1.0)
    assert len(story.starting) == 1
    story.hello()
    story.done("a", out=1)
    assert story.finished["second"] is None


def test_a_start_that_fails_does_no_harm_while_other_containers_are_ready():
    story = fan(deaf=True, items=3, scaling=Scaling(max_replicas=2))
    assert len(story.starting) == 2
    failing = story.starting.pop(0)
    story.hello()
    story.starting.append(failing)
    story.start_failed()
    assert story.finished == {}
    assert story.tags_of("b") == [(0,)]
    for tag in range(3):
        story.done("b", tag, out=tag)
    story.done("a")
    assert story.outputs["r"] == [0, 1, 2]
    assert story.failure is None


def test_the_last_of_several_starts_that_fail_takes_the_waiting_tasks_along():
    story = fan(deaf=True, items=2, scaling=Scaling(max_replicas=2))
    story.start_failed()
    assert story.finished == {}
    story.start_failed()
    assert story.failure is not None
    assert story.failure.stage == "b"


def test_a_container_that_dies_three_times_before_it_is_ready_fails_its_tasks():
    story = Story(ONE, deaf=True)
    story.invoke(x=1)
    for _ in range(2):
        story.die_starting()
        assert story.finished == {}
    story.die_starting()
    assert story.failure is not None
    assert story.failure.kind == "ContainerCrashed"
    assert "before it was ready" in story.failure.message
    assert len(story.gone) == 3


def test_a_container_that_gets_ready_makes_up_for_those_that_died():
    story = fan(deaf=True, items=1, scaling=Scaling(max_replicas=1), retry=AGAIN)
    for _ in range(2):
        story.die_starting()
    story.hello()
    story.crash("b", 0)  # it had been ready: this counts as an attempt, not as a start
    story.wait(1.1)
    for _ in range(2):
        story.die_starting()
        assert story.finished == {}
    story.hello()
    story.done("b", 0, out=0)
    story.done("a")
    assert story.failure is None


# --- versions ---


def test_a_removed_workflow_ends_its_invocations_before_its_containers():
    story = Story(ONE)
    story.invoke(x=1)
    story.tell(WorkflowRemoved("w@1"))
    assert story.leaving == []
    story.invoke("late", x=1)
    late = story.finished["late"]
    assert late is not None
    assert late.code is Code.NOT_FOUND
    story.done("a", out=1)
    assert story.failure is None
    assert story.leaving == [1]
    story.leave()
    story.release()
    assert story.core.statistics().workflows == 0
    assert story.core.statistics().containers == 0


def test_a_removed_workflow_stops_containers_that_are_still_starting():
    story = Story(workflow([stage("a", {"x": "inputs.x"}, scaling=Scaling(min_replicas=1))], {"r": "a.out"}), deaf=True)
    story.tell(WorkflowRemoved("w@1"))
    assert story.leaving == story.starting == [1]
    story.leave()
    assert count(story, StartContainer) == 1


def test_a_removed_workflow_keeps_a_container_that_has_not_let_go_of_a_cancelled_task():
    story = Story(ONE)
    story.invoke(x=1)
    story.tell(WorkflowRemoved("w@1"))
    story.release()
    assert story.failure is not None
    assert story.leaving == []
    story.fail("a", kind="Cancelled", code=Code.CANCELLED)
    assert story.leaving == [1]


def test_two_versions_run_side_by_side():
    story = Story(ONE)
    story.invoke("old", x=1)
    story.tell(WorkflowAdded("w@2", compile_program(workflow([stage("b", {"x": "inputs.x"})], {"r": "b.out"}))))
    story.tell(WorkflowRemoved("w@1"))
    story.invoke("new", key="w@2", x=1)
    story.done("b", out="new")
    assert story.finished == {"new": None}
    assert story.leaving == []
    story.done("a", out="old")
    assert story.finished == {"new": None, "old": None}
    assert [story.stages[number] for number in story.leaving] == ["a"]


def test_a_version_applied_again_outlives_its_former_self():
    story = Story(ONE)
    story.invoke("old", x=1)
    story.tell(WorkflowRemoved("w@1"))
    story.tell(WorkflowAdded("w@1", compile_program(ONE)))
    story.done("a", out=1)
    story.invoke("new", x=1)
    story.done("a", out=1)
    assert story.finished == {"old": None, "new": None}
    assert story.leaving == [1]


# --- how many, and for how long ---


def test_a_full_queue_refuses_invocations():
    scaling = Scaling(max_replicas=1, max_queued=2)
    story = Story(workflow([stage("a", {"x": "inputs.x"}, scaling=scaling)], {"r": "a.out"}))
    for name in ("running", "queued", "queued too"):
        story.invoke(name, x=1)
    assert story.finished == {}
    story.invoke("one too many", x=1)
    failure = story.finished.pop("one too many")
    assert failure is not None
    assert (failure.kind, failure.code) == ("QueueFull", Code.RESOURCE_EXHAUSTED)
    assert failure.retry_after_s > 0
    story.done("a", out=1)
    story.invoke("welcome again", x=1)
    assert story.finished == {"running": None}


def test_an_invocation_under_way_may_overfill_the_queue():
    story = fan(items=5, scaling=Scaling(max_replicas=1, max_queued=1))
    assert story.finished == {}
    story.invoke("next", x=1)
    assert story.finished["next"] is not None


def test_the_minimum_is_there_before_the_first_task_and_replaced():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, scaling=Scaling(min_replicas=2, max_replicas=3))], {"r": "a.out"})
    )
    assert story.containers_of("a") == [1, 2]
    story.exit(1)
    assert story.containers_of("a") == [2, 3]
    story.wait(1000)
    assert story.containers_of("a") == [2, 3]
    assert story.leaving == []


def test_idle_containers_leave_after_a_while_down_to_the_minimum():
    story = fan(items=3, scaling=Scaling(min_replicas=1, max_replicas=3, keep_alive_s=10.0))
    assert len(story.containers_of("b")) == 3
    story.wait(60)
    assert story.leaving == []
    for tag in range(3):
        story.done("b", tag, out=tag)
        story.wait(1)
    story.wait(6.9)
    assert story.leaving == []
    story.wait(0.3)
    assert len(story.leaving) == 1
    story.wait(100)
    assert len([n for n in story.leaving if story.stages[n] == "b"]) == 2


def test_a_container_that_was_used_again_stays_for_another_while():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, scaling=Scaling(max_replicas=1, keep_alive_s=10.0))], {"r": "a.out"})
    )
    for name in ("first", "second"):
        story.invoke(name, x=1)
        story.done("a", out=1)
        story.wait(9)
    story.wait(0.9)
    assert story.leaving == []
    story.wait(0.2)
    assert story.leaving == [1]


def test_a_stage_without_containers_sends_an_idle_one_of_another_stage_away():
    stages = [stage("a", {"x": "inputs.x"}), stage("b", {"x": "a.out"}), stage("c", {"x": "b.out"})]
    story = Story(workflow(stages, {"r": "c.out"}), config=CoreConfig(max_containers=2))
    story.invoke(x=1)
    story.done("a", out=1)
    assert story.leaving == []
    story.done("b", out=1)
    assert [story.stages[n] for n in story.leaving] == ["a"]  # idle for longer than b
    assert not story.is_running("c")
    story.leave()
    story.done("c", out=1)
    assert story.failure is None
    assert len(story.containers_of("b")) == 1


def test_a_stage_that_waits_for_room_gets_it_when_a_container_becomes_idle():
    story = Story(
        ONE,
        workflow([stage("b", {"x": "inputs.x"})], {"r": "b.out"}),
        config=CoreConfig(max_containers=1),
    )
    story.invoke("first", x=1)
    story.invoke("second", key="w1@1", x=1)
    assert story.leaving == []
    assert not story.is_running("b")
    story.done("a", out=1)
    story.leave()
    story.done("b", out=1)
    assert story.finished == {"first": None, "second": None}


def test_the_minimum_of_other_stages_is_not_sent_away():
    stages = [stage("a", {"x": "inputs.x"}), stage("b", {"x": "a.out"}), stage("c", {"x": "b.out"})]
    stages[0] = stage("a", {"x": "inputs.x"}, scaling=Scaling(min_replicas=1))
    story = Story(workflow(stages, {"r": "c.out"}), config=CoreConfig(max_containers=2))
    story.invoke(x=1)
    story.done("a", out=1)
    story.done("b", out=1)
    assert [story.stages[n] for n in story.leaving] == ["b"]


# --- the limit and standstills (docs/adr/0006) ---


def blocked(max_containers: int, **fields) -> Story:
    """A producer that holds all places is out of credit; nobody can take what it made."""
    stages = [stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=2)), stage("b", {"t": "each a.t"}, **fields)]
    story = Story(workflow(stages, {"r": "gather b.out"}), config=CoreConfig(max_containers=max_containers))
    story.invoke(x=1)
    story.emit("a", t=0)
    return story


def test_the_limit_gives_way_when_a_producer_is_out_of_credit():
    story = blocked(1)
    assert story.containers_of("b") == []  # the producer goes on for a while
    story.emit("a", t=1)
    assert len(story.containers_of("b")) == 1  # now nothing would move any more
    story.done("b", 0, out=0)
    story.done("b", 1, out=1)
    story.done("a")
    assert story.outputs["r"] == [0, 1]
    assert story.failure is None


def test_the_limit_gives_way_to_one_container_a_stage():
    story = blocked(1, scaling=Scaling(max_replicas=2))
    story.emit("a", t=1)
    assert len(story.containers_of("b")) == 1
    assert story.tags_of("b") == [(0,)]


def test_the_limit_does_not_give_way_to_a_stage_whose_container_waits():
    stages = [
        stage("a", {"x": "inputs.x"}, ["t*"]),
        stage("b", {"t": "each a.t"}, ["u*"], credit=Credit(items=1), scaling=Scaling(max_replicas=2)),
        stage("c", {"s*": "b.u"}),
    ]
    story = Story(workflow(stages, {"r": "gather c.out"}), config=CoreConfig(max_containers=1))
    story.invoke(x=1)
    for item in range(2):
        story.emit("a", t=item)
    story.done("a")
    story.leave()
    story.emit("b", 0, u=1)  # out of credit; the next task of `b` waits for its place, `c` for any
    assert len(story.containers_of("b")) == 1
    assert story.is_running("c", 0)
    story.taken("c", 0, name="s", items=1)
    story.emit("b", 0, u=2)
    assert len(story.containers_of("b")) == 1


def test_a_place_goes_to_the_stage_with_the_fewest_containers():
    stages = [stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"t": "each a.t"}, scaling=Scaling(max_replicas=3))]
    other = workflow([stage("other", {"x": "inputs.x"})], {"r": "other.out"})
    story = Story(workflow(stages, {"r": "gather b.out"}), other, config=CoreConfig(max_containers=2))
    story.invoke(x=1)
    for item in range(3):
        story.emit("a", t=item)
    story.invoke("second", key="w1@1", x=1)
    story.done("a")
    story.leave()
    assert story.is_running("other")
    assert len(story.containers_of("b")) == 1


def test_an_idle_container_whose_task_comes_at_the_same_moment_stays():
    stages = [
        stage("a", {"x": "inputs.x"}, scaling=Scaling(min_replicas=1)),
        stage("b", {"x": "a.out"}),
        stage("c", {"x": "a.out"}),
    ]
    story = Story(workflow(stages, {"b": "b.out", "c": "c.out"}), config=CoreConfig(max_containers=2))
    story.invoke("first", x=1)
    story.done("a", out=1)
    story.done("b", out=1)
    story.leave()
    story.done("c", out=1)
    story.invoke("second", x=1)
    story.done("a", out=1)
    assert story.is_running("c")
    assert story.leaving == []


def test_the_limit_gives_way_when_readers_wait_for_a_stage_without_containers():
    stages = [
        stage("a", {"x": "inputs.x"}, ["t*"]),
        stage("b", {"t": "each a.t"}, scaling=Scaling(max_replicas=1), retry=AGAIN),
        stage("c", {"s*": "gather b.out"}),
    ]
    listener = workflow([stage("listener", {"s*": "inputs.s"})], {"r": "listener.out"}, inputs=["s*"])
    story = Story(workflow(stages, {"r": "c.out"}), listener, config=CoreConfig(max_containers=2))
    story.invoke(x=1)
    story.emit("a", t=0)
    story.emit("a", t=1)
    story.done("a")
    story.done("b", 0, out=0)
    story.leave()  # the container of `a` makes room for `c`
    story.invoke("o", key="w1@1", streams=["s"])
    story.feed("s", 1, invocation="o")
    story.crash("b", 1)
    assert story.is_running("listener")  # it has the place of `b`, whose task waits for its next attempt
    story.wait(1.1)
    assert not story.is_running("b", 1)
    story.taken("listener", name="s", items=1)
    assert not story.is_running("b", 1)
    story.taken("c", name="s", items=1)  # now both read all that has come
    assert story.is_running("b", 1)
    story.done("b", 1, out=1)
    story.done("c", out=2)
    assert story.failure is None


def test_the_limit_holds_while_a_task_just_takes_long():
    story = Story(ONE, workflow([stage("b", {"x": "inputs.x"})], {"r": "b.out"}), config=CoreConfig(max_containers=1))
    story.invoke("first", x=1)
    story.invoke("second", key="w1@1", x=1)
    story.wait(1000)
    assert story.containers_of("b") == []


def test_the_limit_gives_way_where_minima_hold_all_places():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, scaling=Scaling(min_replicas=1))], {"r": "a.out"}),
        workflow([stage("b", {"x": "inputs.x"})], {"r": "b.out"}),
        config=CoreConfig(max_containers=1),
    )
    story.invoke(key="w1@1", x=1)
    story.done("b", out=1)
    assert story.failure is None


def test_a_minimum_alone_does_not_exceed_the_limit():
    scaling = Scaling(min_replicas=1)
    story = Story(
        workflow([stage(n, {"x": "inputs.x"}, scaling=scaling) for n in "ab"], {"r": "a.out", "s": "b.out"}),
        config=CoreConfig(max_containers=1),
    )
    assert count(story, StartContainer) == 1


# --- several tasks in a container ---


def test_a_container_is_not_killed_while_others_run_in_it():
    story = fan(items=2, scaling=Scaling(max_replicas=1, concurrency=2), timeout_s=5.0, retry=Retry(interval_s=0.0))
    story.emit("a", t=2)
    container = story.containers_of("b")[0]
    story.wait(4)
    story.done("b", 0, out=0)  # task 2 begins, with five seconds of its own
    story.wait(2)  # task 1 is told to stop, and doesn't
    story.wait(2.5)
    assert count(story, KillContainer) == 0
    story.done("b", 2, out=2)
    story.wait(2.5)
    assert story.leaving == [container]
    assert count(story, KillContainer) == 1


def test_a_container_with_a_deaf_task_gets_no_more_tasks_and_leaves_when_it_lets_go():
    story = fan(items=2, scaling=Scaling(max_replicas=1, concurrency=2), timeout_s=5.0, retry=Retry(interval_s=0.0))
    story.wait(4)
    story.done("b", 0, out=0)
    story.emit("a", t=2)
    story.wait(3.5)  # the time of task 1 is over, and that in which it should have stopped
    first = story.containers_of("b")[0]
    story.emit("a", t=3)
    assert story.running["b", (3,)][0] != first
    story.fail("b", 1, kind="Cancelled", code=Code.CANCELLED)
    assert story.leaving == []
    story.done("b", 2, out=2)
    assert story.leaving == [first]
    assert count(story, StopContainer) == 1
    assert count(story, KillContainer) == 0


def test_a_task_that_is_done_when_it_is_told_to_stop_has_timed_out_all_the_same():
    story = fan(items=1, timeout_s=5.0, retry=Retry(max_attempts=2, interval_s=0.0))
    story.wait(5.1)
    story.done("b", 0, out="late")
    assert story.running["b", (0,)][1].attempt == 2
    story.done("b", 0, out="in time")
    story.done("a")
    assert story.outputs["r"] == ["in time"]
    story.wait(10)
    assert count(story, KillContainer) == 0


def test_what_a_timed_out_task_still_emits_is_dropped():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, ["t*"], timeout_s=5.0, retry=Retry(interval_s=0.0))], {"r": "a.t"})
    )
    story.invoke(x=1)
    story.emit("a", t="first")
    story.wait(5.1)
    story.emit("a", t="late")
    story.done("a")
    story.emit("a", t="first")
    story.emit("a", t="second")
    story.done("a")
    assert story.outputs["r"] == ["first", "second"]


# --- starts that take too long ---


def test_a_start_that_takes_too_long_is_ended_and_takes_the_waiting_tasks_along():
    story = Story(ONE, config=CoreConfig(start_timeout_s=5.0), deaf=True)
    story.invoke(x=1)
    story.wait(4.9)
    assert story.finished == {}
    story.wait(0.2)
    assert count(story, KillContainer) == 1
    failure = story.failure
    assert failure is not None
    assert (failure.kind, failure.code, failure.stage) == ("StartTimeout", Code.DEADLINE_EXCEEDED, "a")
    assert "start_timeout_s = 5" in failure.message


def test_a_stage_has_a_limit_of_its_own_for_its_start():
    slow = workflow([stage("a", {"x": "inputs.x"}, start_timeout_s=60.0)], {"r": "a.out"})
    story = Story(slow, config=CoreConfig(start_timeout_s=5.0), deaf=True)
    story.invoke(x=1)
    story.wait(59.0)
    assert story.finished == {}
    story.wait(2.0)
    assert story.failure is not None
    assert story.failure.kind == "StartTimeout"


def test_a_container_that_is_ready_in_time_is_left_alone():
    story = Story(ONE, config=CoreConfig(start_timeout_s=5.0))
    story.invoke(x=1)
    story.wait(1.0)
    story.hello()
    story.wait(10.0)
    assert story.finished == {}
    assert count(story, KillContainer) == 0
    story.done("a", out=2)
    assert story.outputs == {"r": 2}


def test_a_late_start_is_caught_like_any_failure():
    caught = (Catch(errors=("StartTimeout",), output={"out": 5}),)
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, catch=caught)], {"r": "a.out"}),
        config=CoreConfig(start_timeout_s=1.0),
        deaf=True,
    )
    story.invoke(x=1)
    story.wait(1.1)
    assert story.outputs == {"r": 5}
