"""Matching: tokens in, fireable tasks out. One `Flow` is the state of one invocation (contract: docs/semantics.md).

Every edge *speaks* exactly once for each task of its consumer (a stream speaks at its end): with a token or with
absence. An instance lives until it is over and all its edges have spoken, so a late token always finds it, and nothing
is kept longer.
"""

from __future__ import annotations

from dataflower.core.branches import Branches
from dataflower.core.gathers import Gathers, Groups
from dataflower.core.instance import (
    Emitter,
    Instance,
    Item,
    Phase,
    StreamInput,
)
from dataflower.core.ledger import Ledger
from dataflower.core.lineage import Made, Rewrite
from dataflower.core.merge import MergeState
from dataflower.core.outputs import Outputs
from dataflower.core.payload import ABSENT, Absent, drop, hold, value_bytes
from dataflower.core.program import (
    CALLER,
    OUTPUT,
    Consumer,
    Element,
    Mode,
    Program,
    case_port,
    keyed_element,
)
from dataflower.core.switch import choose
from dataflower.core.values import EMPTY
from dataflower.errors import Code, Failure
from dataflower.spec.expression import ExpressionError
from dataflower.spec.workflow import Credit
from dataflower.wire import Tag, Value


class Flow:
    """State of one invocation. The core reads and empties `ready`, `fed`, `granted`, `outputs.said` after each call.

    ready    instances that may be queued
    fed      running instances with stream items or ends that their container has not been told
    granted  producers whose credit may have moved
    """

    def __init__(self, invocation: str, program: Program, ledger: Ledger) -> None:
        self.invocation = invocation
        self.program = program
        self.ledger = ledger
        self.instances: list[dict[Tag, Instance]] = [{} for _ in program.stages]
        self.ready: list[Instance] = []
        self.fed: list[Instance] = []
        self.granted: list[Emitter] = []
        self.outputs = Outputs(invocation, program.outputs, ledger, self.granted)
        self.active = 0
        """Instances queued, running or waiting for another attempt."""
        self.failure: Failure | None = None
        """Set by a switch that can't be decided; the core ends the invocation."""
        self.over = False
        self.caller: dict[str, Emitter] = {}
        """Stream inputs that the caller is still feeding."""
        self._caller_items = 0
        self._ended: list[Emitter] = []
        self.repeating: dict[Instance, None] = {}
        """Tasks that make lost outputs again."""
        self._gathers = Gathers(ledger)
        self._branches = Branches(ledger)
        self._groups = Groups(ledger)

    # --- the caller ------------------------------------------------------------------------------------------

    def start(self, inputs: dict[str, Value], open_inputs: tuple[str, ...]) -> None:
        """The invocation arrived: its value inputs are there, `open_inputs` will be fed."""
        stage = self.program.stages[CALLER]
        if stage.streams:
            caller = Instance(self, stage, ())
            caller.phase = Phase.RUNNING
            caller.unheard = 1  # kept until the caller has ended its streams
            self.instances[CALLER][()] = caller
            credit = Credit()
            for port in stage.streams:
                self.caller[port] = Emitter(credit.items, credit.bytes, caller, port)
        for source in self.program.sources:
            self._fire(self._instance(source.index, ()))
        for name, consumers in stage.values.items():
            self._distribute(consumers, (), inputs.get(name, ABSENT), None)
        for port in tuple(self.caller):
            if port not in open_inputs:
                self.end_caller(port)

    def feed_caller(self, port: str, value: Value) -> bool:
        """An item of a stream input came; False if that input isn't open."""
        emitter = self.caller.get(port)
        if emitter is None:
            return False
        index = emitter.emitted
        self._emit(self.program.stages[CALLER].streams[port], emitter, (index,), value)
        emitter.emitted += 1
        self._caller_items = max(self._caller_items, emitter.emitted)
        self.granted.append(emitter)
        return True

    def end_caller(self, port: str) -> None:
        """The caller has sent the last item of a stream input (a repetition is ignored)."""
        emitter = self.caller.pop(port, None)
        if emitter is None:
            return
        emitter.open = False
        stage = self.program.stages[CALLER]
        for consumer in stage.streams[port]:
            if consumer.mode is Mode.STREAM:
                self._end_stream(consumer, ())
            elif consumer.mode is Mode.KEYED:
                self._end_groups(consumer, ())
        self._ended.append(emitter)
        if self.caller:
            return
        for done in self._ended:  # ports that ended early lack the last items
            for index in range(done.emitted, self._caller_items):
                self._distribute(stage.streams[done.port], (index,), ABSENT, None)
        self._count(CALLER, (), self._caller_items)
        self.instances[CALLER].clear()

    # --- what tasks hand out ---------------------------------------------------------------------------------

    def emit(self, instance: Instance, index: int, outputs: dict[str, Value]) -> None:
        """A task yielded item `index`: all its stream ports, absent where `outputs` says nothing."""
        emitter = instance.emitter
        assert emitter is not None
        nbytes = 0
        for name in instance.program.streams:
            if name in outputs:
                nbytes += value_bytes(outputs[name])
        emitter.emitted += 1
        emitter.bytes += nbytes
        self.granted.append(emitter)
        if instance.repeats or index < instance.delivered:
            return  # an earlier attempt got this far
        instance.delivered = index + 1
        item = Item(emitter, nbytes)
        if instance.program.index in self.program.ordered:
            instance.children[index] = item
        tag = (*instance.tag, index)
        for name, consumers in instance.program.streams.items():
            self._distribute(consumers, tag, outputs.get(name, ABSENT), item)

    def _emit(self, consumers: list[Consumer], emitter: Emitter, tag: Tag, value: Value) -> None:
        nbytes = value_bytes(value)
        emitter.bytes += nbytes
        self._distribute(consumers, tag, value, Item(emitter, nbytes))

    def finish(self, instance: Instance, outputs: dict[str, Value]) -> None:
        """A task is over, its value ports are `outputs` (others absent), its streams end where they are."""
        self.retire(instance)
        program, tag = instance.program, instance.tag
        for name, consumers in program.values.items():
            if consumers:
                self._distribute(consumers, tag, outputs.get(name, ABSENT), None)
        if program.streams:
            self._end_items(instance, instance.delivered)
        self._forget_if_heard(instance)

    def expect(self, stage: int, tag: Tag) -> Instance | None:
        """The instance of which nothing has been heard yet, for a promise; None if there is none such."""
        instance = self._instance(stage, tag)
        return instance if instance.phase is Phase.WAITING and not instance.promised else None

    def skip(self, instance: Instance) -> None:
        """It will not run: all its outputs are absent."""
        self.retire(instance)
        program, tag = instance.program, instance.tag
        for consumers in program.values.values():
            self._distribute(consumers, tag, ABSENT, None)
        if program.streams:
            self._end_items(instance, ABSENT)
        self._forget_if_heard(instance)

    def retire(self, instance: Instance) -> None:
        """Make it DONE and let go of its inputs (what user code still keeps was counted as held before)."""
        if instance.phase in (Phase.QUEUED, Phase.RUNNING, Phase.RETRYING):
            self.active -= 1
        self.granted.extend(instance.let_go(self.ledger))

    def repeat(self, made: Made) -> Instance:
        """A task of which outputs were lost is to run once more; it waits for its next attempt."""
        instance = made.repeat(self.ledger)
        instance.phase = Phase.RETRYING
        self.repeating[instance] = None
        self.active += 1
        return instance

    def end_repeat(self, instance: Instance) -> None:
        """It is over: its outputs have taken the places of the lost ones."""
        self.retire(instance)
        del self.repeating[instance]

    def everyone(self) -> list[Instance]:
        """All tasks that are or will be."""
        return [*(i for instances in self.instances[1:] for i in instances.values()), *self.repeating]

    def rewrite(self, rewrite: Rewrite) -> None:
        """Hold outputs that were made again instead of the lost ones; running tasks have read what they have."""
        for instance in self.everyone():
            if instance.phase is Phase.RUNNING:
                rewrite.untold(instance)
            elif instance.phase is not Phase.DONE:
                rewrite.instance(instance)
        self._gathers.rewrite(rewrite.value)
        self._groups.rewrite(rewrite.value)
        self._branches.rewrite(rewrite.payload)

    def _end_items(self, instance: Instance, count: int | Absent) -> None:
        program, tag = instance.program, instance.tag
        for consumers in program.streams.values():
            for consumer in consumers:
                if consumer.mode is Mode.STREAM:
                    if count is ABSENT:
                        self._absent_stream(consumer, tag)
                    else:
                        self._end_stream(consumer, tag)
                elif consumer.mode is Mode.KEYED:
                    if count is ABSENT:
                        self._count(keyed_element(consumer.stage), tag, ABSENT)
                    else:
                        self._end_groups(consumer, tag)
        self._count(program.index, tag, count)

    # --- tokens on their way ---------------------------------------------------------------------------------

    def _distribute(self, consumers: list[Consumer], tag: Tag, payload: Value | Absent, item: Item | None) -> None:
        for consumer in consumers:
            mode = consumer.mode
            if mode is Mode.VALUE:
                self._hand(consumer, tag, payload, item)
            elif mode is Mode.GATHER:
                self._collect(consumer, tag[:-1], tag[-1], payload)
            elif payload is ABSENT:
                continue  # a stream just lacks the item
            elif mode is Mode.STREAM:
                self._push(consumer, tag[:-1], payload, item)
            else:
                self._group(consumer, tag[:-1], payload)

    def _hand(
        self, consumer: Consumer, tag: Tag, payload: Value | Absent | tuple[Value, ...], item: Item | None
    ) -> None:
        if consumer.stage == OUTPUT:
            assert not isinstance(payload, tuple)
            self.outputs.resolve(consumer.input, payload)
        elif consumer.broadcast:
            self._share(consumer, tag, payload)
        else:
            self._speak(self._instance(consumer.stage, tag), consumer, payload, item)

    def _instance(self, stage: int, tag: Tag) -> Instance:
        known = self.instances[stage].get(tag)
        if known is not None:
            return known
        program = self.program.stages[stage]
        instance = Instance(self, program, tag)
        self.instances[stage][tag] = instance
        for consumer, payload in self._branches.shared_with(program, tag):
            self._speak(instance, consumer, payload, None)
        return instance

    def _share(self, consumer: Consumer, tag: Tag, payload: Value | Absent | tuple[Value, ...]) -> None:
        self._branches.share(consumer, tag, payload)
        depth = len(tag)
        below = [i for t, i in self.instances[consumer.stage].items() if t[:depth] == tag]
        for instance in below:
            self._speak(instance, consumer, payload, None)
        self._branches.close_if_done(self.program.stages[consumer.stage], tag)

    def _speak(
        self,
        instance: Instance,
        consumer: Consumer,
        payload: Value | Absent | tuple[Value, ...],
        item: Item | None,
    ) -> None:
        """An edge says its word about one task."""
        instance.unheard -= 1
        if instance.phase is Phase.DONE:
            self._forget_if_heard(instance)
            return
        number = consumer.input
        if instance.satisfied[number]:
            return  # a merge that was decided by others
        entry = instance.program.inputs[number]
        if entry.edges > 1:
            assert not isinstance(payload, tuple)
            state = instance.merges.get(number)
            if state is None:
                state = instance.merges[number] = MergeState(entry.edges)
            merged = state.hear(entry, consumer.edge, payload, self.ledger)
            if merged is None:
                return
            payload = merged
        if payload is ABSENT:
            self.skip(instance)
            return
        hold(self.ledger, payload)
        instance.payloads[number] = payload
        if item is not None:
            instance.items.append(item)
        self._satisfy(instance, number)

    def _satisfy(self, instance: Instance, number: int) -> None:
        instance.satisfied[number] = True
        instance.missing -= 1
        if not instance.missing:
            self._fire(instance)

    def _fire(self, instance: Instance) -> None:
        if instance.program.cases:
            self._decide(instance)
            return
        instance.phase = Phase.QUEUED
        self.active += 1
        if instance.promised:  # its container was given the inputs already
            instance.promised = False
            instance.phase = Phase.RUNNING
            return
        for item in instance.items:
            item.use()
        for stream in instance.streams.values():
            for _, entry in stream.entries:
                if entry is not None:
                    entry.use()
        self.ready.append(instance)

    def _decide(self, instance: Instance) -> None:
        """Run a switch: the first true case, else the default, else none."""
        program = instance.program
        taken: str | None = None
        try:
            taken = choose(program, instance.payloads)
        except (ExpressionError, ValueError) as error:
            self.failure = Failure(Code.INVALID_ARGUMENT, "SwitchError", str(error), program.name, 1)
        self.finish(instance, {} if taken is None else {case_port(taken): EMPTY})

    # --- streams ---------------------------------------------------------------------------------------------

    def _push(self, consumer: Consumer, tag: Tag, value: Value, item: Item | None) -> None:
        if consumer.stage == OUTPUT:
            self.outputs.push(consumer.input, value, item)
            return
        instance = self._instance(consumer.stage, tag)
        if instance.phase is Phase.DONE:
            return
        stream = self._stream(instance, consumer.input)
        self.ledger.hold(value)
        stream.entries.append((value, item))
        if not instance.satisfied[consumer.input]:
            self._satisfy(instance, consumer.input)
            return
        if instance.phase is not Phase.WAITING and item is not None:
            item.use()
        if instance.phase is Phase.RUNNING:
            self.fed.append(instance)

    def _end_stream(self, consumer: Consumer, tag: Tag) -> None:
        if consumer.stage == OUTPUT:
            self.outputs.end(consumer.input, absent=False)
            return
        instance = self._instance(consumer.stage, tag)
        instance.unheard -= 1
        if instance.phase is Phase.DONE:
            self._forget_if_heard(instance)
            return
        self._stream(instance, consumer.input).ended = True
        if not instance.satisfied[consumer.input]:
            self._satisfy(instance, consumer.input)
        elif instance.phase is Phase.RUNNING:
            self.fed.append(instance)

    def _absent_stream(self, consumer: Consumer, tag: Tag) -> None:
        if consumer.stage == OUTPUT:
            self.outputs.end(consumer.input, absent=True)
            return
        instance = self._instance(consumer.stage, tag)
        instance.unheard -= 1
        if instance.phase is Phase.DONE:
            self._forget_if_heard(instance)
        else:
            self.skip(instance)

    @staticmethod
    def _stream(instance: Instance, number: int) -> StreamInput:
        stream = instance.streams.get(number)
        if stream is None:
            stream = instance.streams[number] = StreamInput()
        return stream

    def taken(self, instance: Instance, number: int, items: int) -> None:
        """User code has read so many items: settle them, keep the newest (all if a retry may come)."""
        stream = instance.streams.get(number)
        if stream is None:
            return
        items = min(items, stream.sent)
        for position in range(max(stream.taken, stream.base), items):
            value, item = stream.entries[position - stream.base]
            if item is not None:
                stream.entries[position - stream.base] = (value, None)
                if item.settle():
                    self.granted.append(item.emitter)
        stream.taken = max(stream.taken, items)
        if instance.program.stage.retry is not None:
            return
        while stream.base < stream.taken - 1:
            value, _ = stream.entries.popleft()
            stream.base += 1
            self.ledger.drop(value)

    # --- gathers, groups, broadcasts -------------------------------------------------------------------------

    def _collect(self, consumer: Consumer, tag: Tag, index: int, payload: Value | Absent) -> None:
        self._gathers.add(consumer, tag, index, payload)
        if consumer.ordered:
            for position, value in self._gathers.in_order(consumer, tag):
                self._push(consumer, tag, value, self._root_item(consumer, tag, position))
                self.ledger.drop(value)
        self._close_gather(consumer, tag)

    def _root_item(self, consumer: Consumer, tag: Tag, index: int) -> Item | None:
        """The item of the fan-out's producer that this one goes back to: it is what a slow reader holds up."""
        element = self.program.ordered_roots.get(consumer)
        if element is None or element < 0:
            return None
        producer = self.instances[element].get(tag)
        return None if producer is None else producer.children.pop(index, None)

    def _close_gather(self, consumer: Consumer, tag: Tag) -> None:
        gathered = self._gathers.close(consumer, tag)
        if gathered is None:
            return
        if not consumer.ordered:
            self._hand(consumer, tag, gathered, None)
            drop(self.ledger, gathered)
        elif gathered is ABSENT:
            self._absent_stream(consumer, tag)
        else:
            self._end_stream(consumer, tag)

    def _group(self, consumer: Consumer, tag: Tag, value: Value) -> None:
        try:
            self._groups.add(consumer, tag, value)
        except ValueError as error:
            name = self.program.stages[consumer.stage].name
            self.failure = self.failure or Failure(Code.INVALID_ARGUMENT, "KeyedItemError", str(error), name, 1)

    def _end_groups(self, consumer: Consumer, tag: Tag) -> None:
        groups = self._groups.close(consumer, tag)
        for index, values in enumerate(groups):
            self._hand(consumer, (*tag, index), values, None)
            drop(self.ledger, values)
        self._count(keyed_element(consumer.stage), tag, len(groups))

    def _count(self, element: Element, tag: Tag, count: int | Absent) -> None:
        """The fan-out `element` under `tag` has so many items (ABSENT: it was skipped)."""
        for stage in self.program.broadcasts.get(element, ()):
            self._branches.expect(stage, tag, 0 if isinstance(count, Absent) else count)
        for consumer in self.program.gathers.get(element, ()):
            self._gathers.expect(consumer, tag, count)
            self._close_gather(consumer, tag)

    def _forget_if_heard(self, instance: Instance) -> None:
        if instance.unheard or instance.phase is not Phase.DONE:
            return
        if self.instances[instance.program.index].pop(instance.tag, None) is not None:
            self._branches.child_done(instance.program, instance.tag)

    # --- the end ---------------------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether every output is decided and every sink done with."""
        if self.outputs.unresolved:
            return False
        return not self.program.has_sinks or (not self.active and not self.caller)

    @property
    def is_stuck(self) -> bool:
        """Whether nothing can happen any more although outputs are open (a bug, or a hole in `spec.check`)."""
        return bool(self.outputs.unresolved) and not self.active and not self.caller

    def whereabouts(self) -> str:
        """Which stages run, and which wait: ` (running: a, b; waiting: c)`, nothing if there are none."""
        running, waiting = [], []
        for program, instances in zip(self.program.stages[1:], self.instances[1:], strict=True):
            phases = {instance.phase for instance in instances.values()}
            if Phase.RUNNING in phases:
                running.append(program.name)
            elif phases - {Phase.DONE}:
                waiting.append(program.name)
        said = [f"{what}: {', '.join(names)}" for what, names in (("running", running), ("waiting", waiting)) if names]
        return f" ({'; '.join(said)})" if said else ""

    def abandon(self) -> list[Instance]:
        """The invocation is over: let go of everything but what running tasks read.

        Returns the tasks that were running or queued; a running one must be retired when it ends.
        """
        self.over = True
        active: list[Instance] = []
        for instances in self.instances[1:]:
            for instance in tuple(instances.values()):
                if instance.phase in (Phase.QUEUED, Phase.RUNNING):
                    active.append(instance)
                if instance.phase not in (Phase.RUNNING, Phase.DONE):
                    self.retire(instance)
            instances.clear()
        for instance in self.repeating:
            if instance.phase in (Phase.QUEUED, Phase.RUNNING):
                active.append(instance)
            if instance.phase not in (Phase.RUNNING, Phase.DONE):
                self.retire(instance)
        self.repeating.clear()
        self._gathers.clear()
        self._groups.clear()
        self._branches.clear()
        self.instances[CALLER].clear()
        self.caller.clear()
        return active

    def check_integrity(self) -> None:
        """Raise AssertionError if the books disagree with each other."""
        live = self.everyone()
        if self.over:
            assert not live
            return
        busy = sum(1 for i in live if i.phase in (Phase.QUEUED, Phase.RUNNING, Phase.RETRYING))
        assert self.active == busy, "active count"
        self.outputs.check_integrity()
        for instance in live:
            assert instance.unheard >= 0
            assert instance.phase is not Phase.DONE or instance.unheard, "an instance was not forgotten"
            if instance.phase is Phase.WAITING:
                assert instance.missing == instance.satisfied.count(False)
                assert instance.missing > 0, "an instance with all its inputs does not fire"
            emitter = instance.emitter
            assert emitter is None or 0 <= emitter.outstanding <= emitter.emitted
