"""Lost data makes itself again: whoever needs it waits, and the task that made it runs once more.

Nothing is done before a task is about to read what is lost. Then the task that made it is repeated, as its `retry`
says; what it hands out a second time is dropped, by the identity of its token (stage, tag, port, index), unless the
first is lost: then it takes that one's place wherever it is held. Tasks that have read it already are not concerned.
"""

from __future__ import annotations

import abc

from dataflower import wire
from dataflower.core import events
from dataflower.core.call import Call
from dataflower.core.commands import Command, Tell
from dataflower.core.events import Slot
from dataflower.core.inputs import news
from dataflower.core.instance import Instance, Phase
from dataflower.core.lineage import (
    RESULT,
    Made,
    Rewrite,
    data_lost,
    inputs_lost,
    may_run_again,
    slots_in,
    untold_slots_in,
)
from dataflower.core.payload import refs_of
from dataflower.core.pool import Pool
from dataflower.core.relay import Relays
from dataflower.core.retry import Jitter, next_delay_s
from dataflower.core.timers import Timers
from dataflower.errors import Failure

_UNKNOWN = "the stage that made them has no `retry` that covers DataLost"


class Recovery(Relays):
    """The part of a host core that has lost outputs made again."""

    timers: Timers
    _calls: dict[str, Call]
    _jitter: Jitter
    _made: dict[Slot, Made]
    """By slot of an output that may be lost."""

    @abc.abstractmethod
    def _say(self, command: Command) -> None:
        """A command for the host."""

    @abc.abstractmethod
    def _enqueue(self, call: Call, instance: Instance, now: float) -> Pool:
        """The task waits for a container."""

    @abc.abstractmethod
    def _dispatch(self, pool: Pool, now: float) -> None:
        """Give queued tasks to containers."""

    @abc.abstractmethod
    def _finish(self, call: Call, failure: Failure | None, now: float) -> None:
        """The call is over."""

    @abc.abstractmethod
    def _try_again(self, call: Call, instance: Instance, now: float) -> None:
        """The next attempt is due."""

    # --- what is made ----------------------------------------------------------------------------------------

    def _note_made(
        self, call: Call, instance: Instance, index: int, outputs: dict[str, wire.Value], now: float
    ) -> None:
        """A task hands out item `index`, or its results: note what may be lost, put what was lost in its place."""
        if instance.repeats or (0 <= index < instance.delivered):
            if instance.made is not None and self.ledger.lost:
                self._replace(call, instance.made, index, outputs, now)
            return
        stays = instance.program.index in call.deployment.staying
        if not stays and not (self.ledger.on_disk and may_run_again(instance.program)):
            return
        for port, value in outputs.items():
            self._keep_track(call, instance, index, port, value)

    def _keep_track(self, call: Call, instance: Instance, index: int, port: str, value: wire.Value) -> None:
        ledger = self.ledger
        stays = instance.program.index in call.deployment.staying
        for ref in refs_of(value):
            slot = (ref.arena, ref.slot)
            if ref.arena >> 16 != instance.container or not (stays or ref.arena in ledger.on_disk):
                continue
            made = instance.made
            if made is None:
                made = instance.made = Made(call.flow, instance)
            made.outputs.setdefault(index, {})[port] = value
            made.slots[slot] = index
            self._made[slot] = made
            call.made[made] = None
            ledger.watched.add(slot)

    def _forget_unmade(self) -> None:
        """Outputs that nobody needs any more: what they were made from need not be kept for them."""
        ledger = self.ledger
        while ledger.unwatched:
            slot = ledger.unwatched.pop()
            made = self._made.pop(slot, None)
            if made is None:
                continue
            made.forget(slot)
            if not made.slots:
                made.unpin(ledger)
                call = self._calls.get(made.flow.invocation)
                if call is not None:
                    call.made.pop(made, None)

    def _let_go_of_made(self, call: Call) -> None:
        """The call is over: nothing of it is made again."""
        for made in call.made:
            made.unpin(self.ledger)
        call.made.clear()
        call.lacking.clear()
        call.short.clear()

    def _unpin(self, container: int) -> None:
        """A container has no room: what is kept there only in case something is lost goes first."""
        for made in dict.fromkeys(self._made.values()):
            if made.pinned and made.pins(container):
                made.unpin(self.ledger)

    # --- what is lost ----------------------------------------------------------------------------------------

    def _memory_lost(self, event: events.MemoryLost, now: float) -> None:
        self._lose(event.slots, now)

    def _lose(self, slots: tuple[Slot, ...], now: float) -> None:
        """What these slots held is gone. Tasks that wait for a container and would read it have to wait for more."""
        if not self.ledger.lose(slots):
            return
        for call in list(self._calls.values()):
            for instance in () if call.finished else call.flow.everyone():
                if instance.phase is Phase.QUEUED and not self.ledger.lost.isdisjoint(slots_in(instance)):
                    call.deployment.pools[instance.program.index].pull(instance)
                    if not self._must_wait(call, instance, now):
                        self._dispatch(self._enqueue(call, instance, now), now)
            self._look_after_lacking(call, now)

    def _feed(self, call: Call, instance: Instance, now: float) -> None:
        """Tell a running task what has come for its streams, up to what was lost, which is made again then."""
        lost = self.ledger.lost
        for message in news(instance, lost):
            self._say(Tell(instance.container, message))
        if not lost:
            return
        call.short.pop(instance, None)
        lacking = sorted(lost & untold_slots_in(instance))
        if lacking:
            call.short[instance] = None
        for slot in lacking:
            made = self._made.get(slot)
            if call.finished or instance not in call.short:
                return
            if made is None:
                self._finish(call, inputs_lost(instance.program.name, instance.attempt, _UNKNOWN), now)
            else:
                self._make_again(call, made, now)

    def _look_after_lacking(self, call: Call, now: float) -> None:
        for instance in list(call.short):
            if instance.phase is not Phase.RUNNING:
                call.short.pop(instance, None)
            elif not call.finished:
                self._feed(call, instance, now)
        for instance in list(call.lacking):
            if not call.finished and not self._make_all(call, instance, now):
                self._dispatch(self._enqueue(call, instance, now), now)

    def _must_wait(self, call: Call, instance: Instance, now: float) -> bool:
        """Whether a task that is due would read what is lost; that is being made again then."""
        if self.ledger.lost.isdisjoint(slots_in(instance)):
            return False
        instance.phase = Phase.RETRYING
        call.lacking[instance] = None
        return self._make_all(call, instance, now)

    def _make_all(self, call: Call, instance: Instance, now: float) -> bool:
        """Have everything made again that the task lacks; False if nothing is lacking any more."""
        for slot in sorted(self.ledger.lost & slots_in(instance)):
            if call.finished or instance not in call.lacking:
                return True
            made = self._made.get(slot)
            if made is None:
                self._finish(call, inputs_lost(instance.program.name, instance.attempt, _UNKNOWN), now)
            elif not self._put_right(made, slot, instance):
                self._make_again(call, made, now)
        if call.finished or not self.ledger.lost.isdisjoint(slots_in(instance)):
            return True
        call.lacking.pop(instance, None)
        instance.phase = Phase.QUEUED
        return False

    def _put_right(self, made: Made, slot: Slot, instance: Instance) -> bool:
        """Whether the task had only missed that it was made again (its container was running it then)."""
        found = made.moved.get(slot)
        if found is None:
            return False
        port, old, new = found
        if any((ref.arena, ref.slot) not in self._made for ref in refs_of(new)):  # it is gone again
            made.outputs.setdefault(made.slots[slot], {})[port] = old
            del made.moved[slot]
            return False
        rewrite = Rewrite(self.ledger)
        rewrite.note(old, new)
        rewrite.instance(instance)
        return True

    def _make_again(self, call: Call, made: Made, now: float) -> None:
        former = made.again or made.instance
        name = former.program.name
        if made.again is not None or former.phase in (Phase.QUEUED, Phase.RETRYING):
            return  # it is on its way
        if former.phase is Phase.RUNNING:
            emitted = 0 if former.emitter is None else former.emitter.emitted
            if any(slot in self.ledger.lost and index < emitted for slot, index in made.slots.items()):
                self._finish(call, data_lost(name, former.attempt, "the task that made them still runs"), now)
            return
        if not made.pinned:
            self._finish(call, data_lost(name, made.attempt, "what they were made from is not there any more"), now)
            return
        failure = data_lost(name, made.attempt, "`retry` of the stage does not let it run again")
        delay = next_delay_s(former.program.stage.retry, failure, self._jitter)
        if delay is None or (call.deadline and now + delay >= call.deadline):
            self._finish(call, failure, now)
            return
        instance = made.again = call.flow.repeat(made)
        if delay > 0:
            self.timers.at(now + delay, lambda at: self._try_again(call, instance, at))
        else:
            self._try_again(call, instance, now)

    def _made_again(self, call: Call, instance: Instance, now: float) -> None:
        """The repetition of a task is over, well."""
        made = instance.made
        assert made is not None
        made.attempt = instance.attempt
        made.again = None
        call.flow.end_repeat(instance)
        self._see_to_rest(call, made, now)

    def _see_to_rest(self, call: Call, made: Made, now: float) -> None:
        """A task is over: what others lack of it will not come by itself."""
        lacking = [slot for slot in made.slots if slot in self.ledger.lost and slot not in made.moved]
        for instance in list(call.lacking):
            if not call.finished and not slots_in(instance).isdisjoint(lacking):
                self._make_again(call, made, now)
        for instance in list(call.short):
            if not call.finished and not untold_slots_in(instance).isdisjoint(lacking):
                self._make_again(call, made, now)

    def _replace(self, call: Call, made: Made, index: int, outputs: dict[str, wire.Value], now: float) -> None:
        """An output was made again: it takes the place of the lost one wherever that is held."""
        ledger = self.ledger
        rewrite = Rewrite(ledger)
        known = made.outputs.get(index, {})
        task = made.again or made.instance
        changed = False
        for port, new in outputs.items():
            old = known.get(port)
            if old is None or all((ref.arena, ref.slot) not in ledger.lost for ref in refs_of(old)):
                continue
            changed = True
            rewrite.note(old, new)
            del known[port]
            for ref in refs_of(old):
                if made.slots.get((ref.arena, ref.slot)) == index:
                    made.moved[ref.arena, ref.slot] = (port, old, new)
            self._keep_track(call, task, index, port, new)
        if not changed:
            return
        call.flow.rewrite(rewrite)
        for other in call.made:
            rewrite.made(other)
        self._look_after_lacking(call, now)

    def _note_end(self, call: Call, instance: Instance, outputs: dict[str, wire.Value], now: float) -> None:
        """A task is over with results, and matching is about to hear of them."""
        self._note_made(call, instance, RESULT, outputs, now)
        if instance.made is not None and not instance.repeats:
            instance.made.pin(self.ledger)
