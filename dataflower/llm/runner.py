"""The LLM runner: one model, one thread that steps it, many callers.

Callers hand commands over and get outputs back on their own loops or threads; between the two there is the scheduler,
which decides, and the model, which computes. The thread sleeps while there is nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from collections.abc import Sequence as Listing
from dataclasses import replace
from typing import Any

import torch

from dataflower.clock import SystemClock
from dataflower.errors import Code, DataflowerError, InvalidArgument
from dataflower.llm.account import RunnerStatistics, Watcher
from dataflower.llm.adapters import Adapter, AdapterStore
from dataflower.llm.attention import Span, plan
from dataflower.llm.blocks import BlockManager
from dataflower.llm.errors import NotFinite, RunnerClosed
from dataflower.llm.fused import Decoded, Newest
from dataflower.llm.generation import Generation
from dataflower.llm.grammar import Grammars
from dataflower.llm.kv import KvStore
from dataflower.llm.lineup import Lineup, line_up
from dataflower.llm.lora import LoraStacks
from dataflower.llm.model import Model
from dataflower.llm.output import TokenOutput
from dataflower.llm.params import SamplingParams
from dataflower.llm.sampling import Choice, Chooser, choose, logprob
from dataflower.llm.scheduler import Chunk, Limits, Scheduler, Step
from dataflower.llm.sequence import FinishReason, Sequence
from dataflower.llm.stream import AsyncTokens, Item, Sink, SyncTokens
from dataflower.llm.text import TextStream
from dataflower.phases import phase
from dataflower.wire import StartKind

_monotonic = SystemClock().monotonic

Prompt = Listing[int] | AsyncIterable[Listing[int]]
"""All tokens, or pieces of them as they come: what is there is computed while the rest is awaited."""


class Runner:
    """See the module. All public methods may be called from any thread."""

    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Any = None,
        ends: Iterable[int] = (),
        limits: Limits | None = None,
        kv_bytes: int = 512 * 1024 * 1024,
        block_size: int = 16,
        identity: str = "",
    ) -> None:
        """Nothing runs before `start`.

        Args:
            model: What computes; the runner's thread alone uses it from now on.
            tokenizer: As `files.read_model` gives it; without it outputs have no text, and no stop text or schema is
                taken.
            ends: End-of-sequence tokens.
            limits: What it may take on.
            kv_bytes: Size of the block store; running sequences take their keys and values once more.
            block_size: Tokens in a block.
            identity: Digest of the model.
        """
        limits = limits or Limits()
        self.limits = replace(limits, context=min(limits.context, model.context))
        self.model = model
        self.adapters = AdapterStore(model.modules, model.dtype, model.device)
        self._tokenizer, self._ends, self._identity = tokenizer, frozenset(ends), identity
        self._grammars = None if tokenizer is None else Grammars(tokenizer, model.vocabulary)
        count = kv_bytes // (block_size * model.kv.token_bytes(model.dtype))
        if count < 1:
            raise InvalidArgument(f"kv_bytes: {kv_bytes} bytes do not hold one block of {block_size} tokens")
        self.scheduler = Scheduler(self.limits, BlockManager(count, block_size))
        self._kv = KvStore(model.kv, count, block_size, model.dtype, model.device)
        self._stacks = LoraStacks(model.groups, model.device)
        self._generations: dict[int, Generation] = {}
        self._lineup: Lineup | None = None
        """Of the last steady step."""
        self._numbers = 0
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._outbox: dict[asyncio.AbstractEventLoop, list[tuple[Sink, Item]]] = {}
        self._steps = self._computed = self._generated = self._preemptions = 0
        self._spent = (0.0, 0.0)
        """`busy_s`, `model_s`"""
        self._in_model_s = 0.0
        """Of the present step."""
        self._watcher: Watcher | None = None

    def watch(self, watcher: Watcher | None) -> None:
        """Tell somebody what is done from now on; None: nobody."""
        self._watcher = watcher

    def start(self) -> Runner:
        """Start the thread, once."""
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(target=self._run, name="llm-runner", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop after the current step; what is not finished fails with RunnerClosed. May be called twice."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # --- callers

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: Adapter | str | None = None
    ) -> AsyncTokens:
        """Generate; on a running loop.

        Args:
            prompt: Tokens, or an asynchronous stream of pieces.
            params: Greedy until the context is full, by default.
            adapter: One of `adapters`, or its name; the generation keeps what it begins with.

        Raises:
            InvalidArgument: Also PromptTooLong and SchemaInvalid, some of them when reading.
            AdapterNotFound: There is none of that name.
            RunnerClosed: It is closed.
        """
        tokens = AsyncTokens()
        if not isinstance(prompt, AsyncIterable):
            self._submit(list(prompt), params, adapter, tokens, open_prompt=False)
            return tokens
        generation = self._submit([], params, adapter, tokens, open_prompt=True)
        feeder = tokens.loop.create_task(self._feed(generation, prompt))
        tokens.feeder = feeder
        return tokens

    def stream(
        self, prompt: Listing[int], params: SamplingParams | None = None, *, adapter: Adapter | str | None = None
    ) -> SyncTokens:
        """`generate` for threads: a blocking iterator."""
        tokens = SyncTokens()
        self._submit(list(prompt), params, adapter, tokens, open_prompt=False)
        return tokens

    def unload(self, name: str) -> None:
        """Forget an adapter; generations that use it go on. Raises AdapterNotFound."""
        digest = self.adapters.unload(name).digest
        self._post(lambda: self._stacks.drop(digest))

    def warm_up(self) -> None:
        """Run a short generation, so that the first caller does not wait for kernels to be made.

        Then give the system back what loading took for a while (tens of MB, most of them the tokenizer's).
        """
        with phase(StartKind.WARM_UP):
            for _ in self.stream([0] * 9, SamplingParams(max_tokens=2, ignore_eos=True)):
                pass
        with contextlib.suppress(AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)

    def trim(self) -> None:
        """Give the memory of keys and values back, those of earlier prompts as well; nothing while anybody generates.

        Returns when that is done, or the runner is closed.
        """
        done = threading.Event()
        self._post_quietly(lambda: self._trim(done))
        while not done.wait(1.0):
            if self._thread is None or not self._thread.is_alive():
                return

    def _trim(self, done: threading.Event) -> None:
        if not self._generations:
            self.scheduler.blocks.forget()
            self._kv.clear()
            with contextlib.suppress(AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)
        done.set()

    def statistics(self) -> RunnerStatistics:
        """A snapshot."""
        scheduler = self.scheduler
        return RunnerStatistics(
            len(scheduler.running),
            len(scheduler.waiting),
            self._steps,
            self._computed,
            self._generated,
            self._preemptions,
            *self._spent,
            scheduler.blocks.statistics(),
        )

    def _submit(
        self,
        prompt: list[int],
        params: SamplingParams | None,
        adapter: Adapter | str | None,
        tokens: AsyncTokens | SyncTokens,
        *,
        open_prompt: bool,
    ) -> Generation:
        params = params or SamplingParams()
        if isinstance(adapter, str):
            adapter = self.adapters.get(adapter)
        self._check(prompt, params, open_prompt)
        matcher = self._grammars.compile(params.schema) if params.schema and self._grammars is not None else None
        with self._wake:
            self._numbers += 1
            number = self._numbers
        root = (self._identity, adapter.digest if adapter is not None else "")
        limit = self.scheduler.limit(len(prompt), params.max_tokens)
        sequence = Sequence(number, root, prompt, params, limit, self._ends, open_prompt)
        text = None if self._tokenizer is None else TextStream(self._tokenizer, prompt, params.stop)
        decides = text if params.stop else None
        generation = Generation(sequence, adapter, Chooser(params, self._ends, matcher), tokens, decides)
        cancel = lambda: self._post_quietly(lambda: self._drop(generation, FinishReason.CANCELLED))  # noqa: E731
        tokens.bind(cancel, None if params.stop else text)
        self._post(lambda: self._begin(generation))
        return generation

    def _check(self, prompt: Listing[int], params: SamplingParams, open_prompt: bool) -> None:
        if not prompt and not open_prompt:
            raise InvalidArgument("the prompt is empty")
        if prompt and not (min(prompt) >= 0 and max(prompt) < self.model.vocabulary):
            raise InvalidArgument(f"the prompt has tokens outside the vocabulary of {self.model.vocabulary}")
        if self._tokenizer is None and (params.stop or params.schema):
            raise InvalidArgument("stop texts and schemas need a tokenizer")
        if params.score_from is not None and open_prompt:
            raise InvalidArgument("score_from needs the whole prompt at once")

    async def _feed(self, generation: Generation, prompt: AsyncIterable[Listing[int]]) -> None:
        try:
            async for piece in prompt:
                tokens = list(piece)
                self._check(tokens, generation.sequence.params, open_prompt=True)
                self._post(lambda tokens=tokens: self._extend(generation, tokens, last=False))  # type: ignore[misc]
            self._post(lambda: self._extend(generation, [], last=True))
        except RunnerClosed:
            return
        except Exception as caught:  # of whoever produces the prompt
            error = caught if isinstance(caught, DataflowerError) else _wrapped(caught)
            self._post_quietly(lambda: self._fail(generation, error))

    def _post(self, command: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise RunnerClosed("the runner is closed")
            self._commands.append(command)
            self._wake.notify()

    def _post_quietly(self, command: Callable[[], None]) -> None:
        """For those who let go: a closed runner has let go already."""
        with self._wake:
            if not self._closed:
                self._commands.append(command)
                self._wake.notify()

    # --- the thread

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                idle = True
                while self._take_commands(wait=idle):
                    began = _monotonic()
                    step = self.scheduler.schedule()
                    idle = not step.chunks
                    self._preemptions += len(step.preempted)
                    for sequence in step.preempted:
                        self._kv.end(sequence.number)
                    if not step.chunks:
                        self._deliver()
                        continue
                    if step.steady:
                        prompts, decoding = 0, len(step.chunks)
                    else:
                        prompts = sum(chunk.count for chunk in step.chunks if not chunk.sequence.decoding)
                        decoding = sum(chunk.sequence.decoding for chunk in step.chunks)
                    self._step(step)
                    self._deliver()
                    self._note(prompts, decoding, _monotonic() - began)
        finally:
            with self._wake:
                self._closed = True
                self._commands.clear()
            for generation in list(self._generations.values()):
                self._fail(generation, RunnerClosed("the runner was closed"))
            self._deliver()
            self._kv.close()

    def _note(self, prompts: int, decoding: int, spent_s: float) -> None:
        """A step is over, in which so many tokens of prompts were computed, and so many sequences got a further one."""
        busy_s, model_s = self._spent
        self._spent = (busy_s + spent_s, model_s + self._in_model_s)  # both at once: others read them at any time
        self._in_model_s = 0.0
        self.scheduler.pace.note(prompts, spent_s, decoding)
        if self._watcher is not None:
            self._watcher.stepped(decoding, prompts)

    def _take_commands(self, *, wait: bool) -> bool:
        """Run what callers want; False when it is time to leave."""
        if not (wait or self._commands or self._closed):  # what comes right now can wait for the next step
            return True
        with self._wake:
            while wait and not self._commands and not self._closed:
                self._wake.wait()
            if self._closed:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        return True

    def _step(self, step: Step) -> None:
        try:
            self._compute(step)
        except Exception as error:  # the model's code: whatever it met, only those in this step may suffer
            failure = error if isinstance(error, DataflowerError) else _wrapped(error)
            for generation in [self._generations.get(chunk.sequence.number) for chunk in step.chunks]:
                if generation is not None:  # not over already
                    self._fail(generation, failure, wipe=True)

    def _compute(self, step: Step) -> None:
        choices = None
        if step.steady:
            lineup = self._line_up(step.chunks)
            decoded = self._decode(lineup, step.chunks)
            if decoded is not None and lineup.takes(decoded):
                self._follow(lineup, step, decoded.likely)
                return
            if decoded is not None:
                choosers = [generation.chooser for generation in lineup.generations]
                found = choose(decoded.logits, choosers, (decoded.best, decoded.likely))
                choices = {chunk.sequence.number: made for chunk, made in zip(step.chunks, found, strict=True)}
        if choices is None:
            for admitted in step.admitted:
                self._kv.start(admitted.sequence.number, admitted.blocks)
            for chunk in step.chunks:
                self._kv.reserve(chunk.sequence.number, chunk.start + chunk.count)
            logits, wanted = self._forward(step.chunks)
            choices = self._choose(logits, wanted)
        for number, made in choices.items():
            if made.token is None:
                error = NotFinite("the model's logits are not finite: its weights or the adapter's are damaged")
                self._fail(self._generations[number], error, wipe=True)
        chosen = {number: made.token for number, made in choices.items() if made.token is not None}
        self._advance(step, chosen)
        for chunk in step.chunks:
            generation = self._generations.get(chunk.sequence.number)
            if chunk.sample and generation is not None:
                self._speak(generation, choices.get(chunk.sequence.number))

    def _advance(self, step: Step, chosen: Mapping[int, int]) -> None:
        """Tell the scheduler, and keep what it says others may want."""
        stored = self.scheduler.advance(step, chosen)
        if stored:
            self._kv.save([(each.sequence.number, each.blocks) for each in stored])
        self._steps += 1
        self._computed += len(step.chunks) if step.steady else sum(chunk.count for chunk in step.chunks)
        self._generated += len(chosen)

    def _line_up(self, chunks: Listing[Chunk]) -> Lineup:
        """Those of a steady step."""
        lineup = self._lineup
        if lineup is None or not lineup.fits(chunks):
            generations = [self._generations[chunk.sequence.number] for chunk in chunks]
            rows = [self._kv.row(chunk.sequence.number) for chunk in chunks]
            lora = self._stacks.batch([(generation.adapter, 1) for generation in generations])
            lineup = self._lineup = line_up(generations, rows, lora)
        return lineup

    def _decode(self, lineup: Lineup, chunks: Listing[Chunk]) -> Decoded | None:
        """What comes of a steady step by the model's short way; None if it has none."""
        positions = [chunk.start for chunk in chunks]
        tokens = [chunk.sequence.tokens[-1] for chunk in chunks]
        self._kv.follow(lineup.rows, positions)
        began = _monotonic()
        decoded = self.model.decode(Newest(tokens, positions, lineup.rows, self._kv, lineup.lora))
        if decoded is not None:
            self._in_model_s += _monotonic() - began
        return decoded

    def _follow(self, lineup: Lineup, step: Step, likely: Listing[int]) -> None:
        """The likeliest tokens are taken: most steps of most answers end here."""
        self._advance(step, {chunk.sequence.number: token for chunk, token in zip(step.chunks, likely, strict=True)})
        for generation, token in zip(lineup.generations, likely, strict=True):
            if generation.sequence.finish is None:
                self._send(generation.sink, TokenOutput(token))
            else:
                self._speak(generation, Choice(token))

    def _forward(self, chunks: Listing[Chunk]) -> tuple[torch.Tensor, list[tuple[Generation, int, bool]]]:
        """Logits, and for each row whose it is, after which position, and whether a token is to be chosen."""
        device = self.model.device
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        wanted: list[tuple[Generation, int, bool]] = []
        rows: list[int] = []
        adapters: list[tuple[Adapter | None, int]] = []
        for chunk in chunks:
            sequence, start, count = chunk.sequence, chunk.start, chunk.count
            generation = self._generations[sequence.number]
            first = len(tokens)
            spans.append(Span(self._kv.row(sequence.number), first, start, count))
            tokens += sequence.tokens[start : start + count]
            positions += range(start, start + count)
            adapters.append((generation.adapter, count))
            for position in generation.scored(start, count):
                wanted.append((generation, position, False))
                rows.append(first + position - start)
            if chunk.sample and generation.sequence.params.max_tokens != 0:
                wanted.append((generation, start + count - 1, True))
                rows.append(first + count - 1)
        at = torch.tensor(positions, device=device)
        attention = plan(self._kv, spans, at)
        lora = self._stacks.batch(adapters)
        began = _monotonic()
        logits = self.model.forward(
            torch.tensor(tokens, device=device),
            at,
            attention,
            lora,
            torch.tensor(rows, dtype=torch.long, device=device),
        )
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._in_model_s += _monotonic() - began
        return logits, wanted

    def _choose(self, logits: torch.Tensor, wanted: Listing[tuple[Generation, int, bool]]) -> dict[int, Choice]:
        sampled = [row for row, (_, _, sample) in enumerate(wanted) if sample]
        for row, (generation, position, sample) in enumerate(wanted):
            if not sample:
                token = generation.sequence.tokens[position + 1]
                top = generation.sequence.params.logprobs or 0
                generation.scores[position + 1] = logprob(logits[row], token, top)
        if not sampled:
            return {}
        rows = logits if len(sampled) == len(wanted) else logits[torch.tensor(sampled, device=logits.device)]
        generations = [wanted[row][0] for row in sampled]
        choices = choose(rows, [generation.chooser for generation in generations])
        return {g.sequence.number: choice for g, choice in zip(generations, choices, strict=True)}

    def _speak(self, generation: Generation, choice: Choice | None) -> None:
        """Tell the reader what came of a step, and end the sequence if it is over."""
        try:
            output = generation.end() if choice is None else generation.take(choice)
        except DataflowerError as error:  # the grammar's limits
            self._fail(generation, error)
            return
        if generation.sequence.finish is not None and self._watcher is not None:
            self._watcher.finished(generation.usage())  # before its reader knows, who may end all of this
        self._send(generation.sink, output)
        if generation.sequence.finish is not None:
            self._drop(generation, generation.sequence.finish)

    # --- commands

    def _begin(self, generation: Generation) -> None:
        self._generations[generation.sequence.number] = generation
        try:
            self.scheduler.submit(generation.sequence)
        except DataflowerError as error:
            del self._generations[generation.sequence.number]
            self._send(generation.sink, error)

    def _extend(self, generation: Generation, tokens: list[int], *, last: bool) -> None:
        sequence = generation.sequence
        if sequence.number not in self._generations:
            return
        sequence.extend(tokens)
        try:
            self.scheduler.check_length(sequence)
            if last and not sequence.tokens:
                raise InvalidArgument("the prompt is empty")
        except DataflowerError as error:
            self._fail(generation, error)
            return
        if last:
            sequence.open = False
            sequence.limit = self.scheduler.limit(sequence.prompt, sequence.params.max_tokens)

    def _drop(self, generation: Generation, reason: FinishReason, *, wipe: bool = False) -> None:
        number = generation.sequence.number
        if self._generations.pop(number, None) is not None:
            self._lineup = None  # rows move
            self.scheduler.finish(generation.sequence, reason)
            self._kv.end(number, wipe=wipe)

    def _fail(self, generation: Generation, error: DataflowerError, *, wipe: bool = False) -> None:
        if generation.sequence.number in self._generations:
            self._drop(generation, FinishReason.ERROR, wipe=wipe)
            self._send(generation.sink, error)

    def _send(self, sink: Sink, item: TokenOutput | DataflowerError) -> None:
        if sink.loop is None:
            sink.put(item)
        else:
            self._outbox.setdefault(sink.loop, []).append((sink, item))

    def _deliver(self) -> None:
        """One wake-up for each loop, however many of its readers get something."""
        outbox, self._outbox = self._outbox, {}
        for loop, items in outbox.items():
            try:
                loop.call_soon_threadsafe(_put_all, items)
            except RuntimeError:  # the loop is closed: nobody reads
                sinks = {id(sink) for sink, _ in items}
                for generation in [g for g in self._generations.values() if id(g.sink) in sinks]:
                    self._drop(generation, FinishReason.CANCELLED)


def _put_all(items: Listing[tuple[Sink, Item]]) -> None:
    for sink, item in items:
        sink.put(item)


def _wrapped(error: Exception) -> DataflowerError:
    return DataflowerError(f"{type(error).__name__}: {error}", code=Code.INTERNAL)
