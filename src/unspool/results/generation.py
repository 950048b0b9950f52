"""The answer to one prompt, whole (`Generation`) or as it comes (`Chunk`).

Owns: the values and how they read as text and JSON. Does not know: how they were computed, how they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unspool.results.drawing import draw
from unspool.results.json_text import JsonText
from unspool.text.emit import text_of
from unspool.text.labels import token_label

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from unspool.config import GenerationConfig
    from unspool.results.trace import Trace
    from unspool.text.detokenize import Detokenizer
    from unspool.types import Output


_SHOWN: Final = 60
"""Characters of a text that a repr shows."""

_SHOWN_IDS: Final = 8


class TopLogprob(NamedTuple):
    """One of the best tokens at a position. logprob: the model's own natural-log probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Completion(JsonText):
    """One output of a prompt.

    index: its place among the prompt's outputs, best first where the strategy ranks them.
    text: the output's text without the prompt, cut before the stop string where one ended it.
    token_ids: every token chosen, the end-of-sequence token and those of the stop string included.
    tokens: the text that came with each token; a character of several tokens stands with its last one. Joined they
        are the output's text, uncut. Empty without a tokenizer.
    logprobs: natural-log probability of each token by the model itself: behind the prompt alone, before guidance,
        contrast of layers and processors. The same for every strategy.
    scores: of each token, after the processors and not renormalized, in the strategy's space.
    score: the value that the strategy ranks outputs by. Its unit depends on the strategy, so scores of two strategies
        cannot be compared: see the table in docs/strategies.md. `logprob` and `mean_logprob` can.
    finish_reason: "eos", "stop", "length", "time" or the name of a criterion; "strategy" where the strategy itself
        went no further.
    top_logprobs: for each token the best alternatives, best first; None unless `logprobs` asked for them.
    unmet: which forced words the output lacks, and why, in words; None where it has all that were asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    scores: tuple[float, ...]
    score: float
    finish_reason: str
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] | None = None
    unmet: str | None = None

    @property
    def logprob(self) -> float:
        """Natural-log probability of the whole output by the model itself: the sum of `logprobs`."""
        return math.fsum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """`logprob` per token, an end-of-sequence token counted; NaN of an output without tokens."""
        return self.logprob / len(self.logprobs) if self.logprobs else math.nan

    @property
    def satisfied(self) -> bool:
        """Whether the output has all that was demanded of it; True where nothing was. `unmet` says why not."""
        return self.unmet is None

    @classmethod
    def from_output(
        cls,
        output: Output,
        *,
        index: int,
        prompt_ids: Sequence[int],
        detokenizer: Detokenizer | None,
        stops: tuple[str, ...] = (),
    ) -> Completion:
        """Return the engine's output with its text; without a detokenizer the text is empty."""
        ids, reason = output.token_ids, output.finish_reason
        text = ""
        tokens: tuple[str, ...] = ()
        if detokenizer is not None:
            text = text_of(detokenizer, prompt_ids, token_ids=ids, finish_reason=reason, stops=stops)
            tokens = detokenizer.pieces(prompt_ids, ids)
        return cls(
            index=index,
            text=text,
            token_ids=ids,
            tokens=tokens,
            logprobs=output.logprobs,
            scores=output.scores,
            score=output.score,
            finish_reason=reason,
            top_logprobs=_named(output, detokenizer),
            unmet=output.unmet,
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        facts = [_beginning(self), _count(len(self.token_ids), "token"), self.finish_reason]
        return f"<Completion {self.index}: {', '.join(facts)}>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; a number that is not finite becomes None."""
        top = self.top_logprobs
        return {
            "index": self.index,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "tokens": list(self.tokens),
            "logprobs": [finite_or_none(value) for value in self.logprobs],
            "scores": [finite_or_none(value) for value in self.scores],
            "score": finite_or_none(self.score),
            "logprob": finite_or_none(self.logprob),
            "mean_logprob": finite_or_none(self.mean_logprob),
            "finish_reason": self.finish_reason,
            "top_logprobs": top and [[_top(entry) for entry in position] for position in top],
            "satisfied": self.satisfied,
            "unmet": self.unmet,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens read and written, and what they cost.

    completion_tokens: over all outputs, end-of-sequence tokens included.
    forward_passes: of the model, in which the prompt took part; other prompts can share them. Passes of a draft model
        do not count.
    """

    prompt_tokens: int
    completion_tokens: int
    forward_passes: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int]:
        """Return the counts; those of tokens have their usual names."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "forward_passes": self.forward_passes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall-clock times of one prompt, from submission on.

    seconds: until the last output was finished. seconds_to_first_token: until the first token was chosen; None where
    that was not seen. tokens_per_second: tokens written over `seconds`, all outputs together.
    """

    seconds: float
    seconds_to_first_token: float | None = None
    tokens_per_second: float

    @classmethod
    def of(cls, seconds: float, *, tokens: int, seconds_to_first_token: float | None = None) -> Timing:
        """Return the timing of `tokens` written in `seconds`."""
        rate = tokens / seconds if seconds > 0 else 0.0
        return cls(seconds=seconds, seconds_to_first_token=seconds_to_first_token, tokens_per_second=rate)

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields by name."""
        return {
            "seconds": self.seconds,
            "seconds_to_first_token": self.seconds_to_first_token,
            "tokens_per_second": self.tokens_per_second,
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Generation(JsonText):
    """The answer to one prompt. Printing it prints its text.

    prompt: the prompt's text; None where token ids were given and there is no tokenizer.
    prompt_token_ids: the prompt as the model read it.
    completions: the outputs, in the strategy's order, best first where it ranks them; at least one.
    seed: the seed its draws were made under; given again, it brings the same result.
    usage, timing: what it cost.
    config: every option as it was in force. strategy: the decoding strategy's name.
    echo: whether `text` begins with the prompt.
    prompt_logprobs: with `echo` and `logprobs`, the model's own log-probability of each prompt token, None for the
        first, which nothing precedes; else None.
    trace: what happened, token by token, where `trace=True` asked for it.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    seed: int
    usage: Usage
    timing: Timing
    config: GenerationConfig
    strategy: str
    echo: bool = False
    prompt_logprobs: tuple[float | None, ...] | None = None
    trace: Trace | None = None

    @property
    def text(self) -> str:
        """Text of the first completion, with the prompt in front where `echo` was asked."""
        return self.text_of(self.completions[0])

    @property
    def texts(self) -> tuple[str, ...]:
        """Text of every completion, each as in `text`."""
        return tuple(self.text_of(completion) for completion in self.completions)

    def text_of(self, completion: Completion) -> str:
        """Return the completion's text, with the prompt in front where `echo` was asked."""
        return (self.prompt or "") + completion.text if self.echo else completion.text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        facts = [_beginning(self.completions[0]), self.strategy, _count(self.usage.completion_tokens, "token")]
        facts += [_count(len(self.completions), "completion")] if len(self.completions) > 1 else []
        return f"<{type(self).__name__}: {', '.join(facts)}>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield draw(self, "terminal")

    def _repr_html_(self) -> str:
        return str(draw(self, "html"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "prompt": self.prompt,
            "prompt_token_ids": list(self.prompt_token_ids),
            "prompt_logprobs": self.prompt_logprobs and [p and finite_or_none(p) for p in self.prompt_logprobs],
            "text": self.text,
            "completions": [completion.to_dict() for completion in self.completions],
            "seed": self.seed,
            "usage": self.usage.to_dict(),
            "timing": self.timing.to_dict(),
            "config": self.config.to_dict(),
            "strategy": self.strategy,
            "trace": self.trace and self.trace.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(JsonText):
    """A piece of streamed text. It is never taken back: whole characters, and no part of a stop string.

    text: what is new; may be "" in an output's last chunk, which brings its finish_reason.
    index: which of the prompt's outputs it belongs to. prompt: which prompt of the call.
    token_ids, logprobs: the tokens committed since the output's last chunk. Their text may come later, when the
        character is whole and no stop string can begin there.
    finish_reason: set in the output's last chunk. is_last: nothing follows in the whole stream.
    tentative: where it was asked for, the text that would follow all the output's chunks so far if the leading branch
        won. Unlike `text` it may be taken back: each one replaces the one before. None: as it was; "": none any more.
    """

    text: str
    index: int = 0
    prompt: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    is_last: bool = False
    tentative: str | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "text": self.text,
            "index": self.index,
            "prompt": self.prompt,
            "token_ids": list(self.token_ids),
            "logprobs": [finite_or_none(value) for value in self.logprobs],
            "finish_reason": self.finish_reason,
            "is_last": self.is_last,
            "tentative": self.tentative,
        }


def _beginning(completion: Completion) -> str:
    """Return the beginning of an output on one line: its text in quotes, or token ids if there is no tokenizer."""
    if completion.token_ids and not completion.tokens:
        ids = ", ".join(map(str, completion.token_ids[:_SHOWN_IDS]))
        return f"[{ids}{', …' if len(completion.token_ids) > _SHOWN_IDS else ''}]"
    text = completion.text
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _named(output: Output, detokenizer: Detokenizer | None) -> tuple[tuple[TopLogprob, ...], ...] | None:
    if output.top_logprobs is None:
        return None
    tokenizer = None if detokenizer is None else detokenizer.tokenizer
    return tuple(
        tuple(TopLogprob(token, token_label(tokenizer, token), logprob) for token, logprob in best)
        for best in output.top_logprobs
    )


def finite_or_none(value: float) -> float | None:
    """Return the number, or None in place of one that JSON cannot hold."""
    return value if math.isfinite(value) else None


def _top(entry: TopLogprob) -> dict[str, Any]:
    return {"token_id": entry.token_id, "text": entry.text, "logprob": finite_or_none(entry.logprob)}
