"""One generation as the runner keeps it: what the policy knows of it, how its tokens are chosen, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataflower.llm.adapters import Adapter
from dataflower.llm.output import Logprob, TokenOutput, Usage
from dataflower.llm.sampling import Choice, Chooser
from dataflower.llm.sequence import FinishReason, Sequence
from dataflower.llm.stream import Sink
from dataflower.llm.text import TextStream


@dataclass(slots=True, eq=False)
class Generation:
    """Belongs to the runner's thread once it is submitted."""

    sequence: Sequence
    adapter: Adapter | None
    chooser: Chooser
    sink: Sink
    text: TextStream | None = None
    """Where the text decides when the answer ends. Otherwise its reader makes it, off the runner's thread."""
    scores: dict[int, Logprob] = field(default_factory=dict)
    spoke: bool = False

    def scored(self, start: int, count: int) -> range:
        """Of the positions of a chunk, those whose logits tell how likely the prompt's next token was."""
        first = self.sequence.params.score_from
        if first is None or self.spoke:
            return range(0)
        return range(max(start, first - 1), min(start + count, self.sequence.prompt - 1))

    def take(self, choice: Choice) -> TokenOutput:
        """A token was chosen and is in the sequence by now: what its reader gets. May set `sequence.finish`."""
        sequence, token = self.sequence, choice.token
        if self.spoke and self.text is None and sequence.finish is None and self.chooser.bare:
            return TokenOutput(token)  # as nearly all are
        assert token is not None
        self.chooser.take(token)
        matcher = self.chooser.matcher
        if matcher is not None and matcher.complete and sequence.finish in (None, FinishReason.LENGTH):
            sequence.finish = FinishReason.STOP
        ended = sequence.finish is FinishReason.STOP and (token in sequence.ends or sequence.stop_token is not None)
        text, stop_reason = "", sequence.stop_token
        reason: str | int | None = stop_reason
        if self.text is not None and not ended:
            text = self.text.push(token)
            if self.text.stopped_by is not None:
                sequence.finish, reason = FinishReason.STOP, self.text.stopped_by
        if self.text is not None and sequence.finish is not None:
            text += self.text.flush()
        return TokenOutput(
            None if ended else token,
            text,
            choice.logprob,
            self._scores(),
            sequence.finish,
            reason,
            None if sequence.finish is None else self.usage(),
        )

    def end(self) -> TokenOutput:
        """The output of a sequence that wanted no token."""
        return TokenOutput(None, scores=self._scores(), finish=FinishReason.LENGTH, usage=self.usage())

    def usage(self) -> Usage:
        """So far."""
        return Usage(self.sequence.prompt, self.sequence.generated, self.sequence.cached)

    def _scores(self) -> tuple[Logprob, ...]:
        """Of the prompt, once."""
        self.spoke = True
        if not self.scores:
            return ()
        scores = tuple(self.scores[position] for position in sorted(self.scores))
        self.scores.clear()
        return scores
