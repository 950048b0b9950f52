"""Generation, Completion and Chunk: the result of one prompt, complete or streamed.

Owns: the values and their text and JSON forms. Does not know: how they were computed, or how they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unspool.results.drawing import draw
from unspool.results.json_text import JsonText
from unspool.text.emit import text_of
from unspool.text.labels import token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderResult

    from unspool.config import GenerationConfig
    from unspool.grammars import Parsed
    from unspool.results.trace import Trace
    from unspool.text.detokenize import Detokenizer
    from unspool.types import Output


_SHOWN: Final = 60
"""Maximum number of characters of a text in a repr."""

_SHOWN_IDS: Final = 8


class TopLogprob(NamedTuple):
    """One of the most probable tokens at a position. logprob: natural log, under the model, before processors."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Completion(JsonText):
    """One output of a prompt.

    index: index among the outputs of the prompt, from 0; best first if the strategy ranks outputs.
    text: text without the prompt. If a stop string ended the output, the text ends before it.
    token_ids: all generated tokens, including the end-of-sequence token and the tokens of a stop string.
    tokens: text added by each token; a character of several tokens belongs to its last token. Joined, they are the
        text before any cut at a stop string. Empty without a tokenizer.
    logprobs: natural-log probability of each token under the model, given the prompt and the tokens before. Computed
        before classifier-free guidance, DoLa and processors, so it is the same for all strategies.
    scores: score of each token after the processors, not normalized, in the strategy's space.
    score: the strategy's ranking score. Its unit depends on the strategy (table in docs/strategies.md); to compare
        strategies, use `logprob` or `mean_logprob`.
    finish_reason: "eos", "stop", "length", "time" or the name of a criterion; "strategy" if the strategy ended the
        output.
    top_logprobs: most probable tokens at each position, best first; None unless the option `logprobs` is on.
    unmet: description of the missing forced words, with the reason; None if no forced word is missing.
    parsed: value of the text under the request's grammar: a Python value for `json_object` and `json_schema`, an
        instance if the schema is a pydantic class, and the text for `regex`, `choice` and `grammar`. None without a
        grammar, and if `parse_error` gives a reason.
    parse_error: reason for a missing value, such as a text that is not complete; None otherwise.
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
    parsed: Any = None
    parse_error: str | None = None

    @property
    def logprob(self) -> float:
        """Natural-log probability of the output under the model: the sum of `logprobs`."""
        return math.fsum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """`logprob` per token, including an end-of-sequence token; NaN for an output without tokens."""
        return self.logprob / len(self.logprobs) if self.logprobs else math.nan

    @property
    def satisfied(self) -> bool:
        """True if the output contains all forced words; `unmet` explains False."""
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
        parse: Callable[[Output, str], Parsed] | None = None,
    ) -> Completion:
        """Return the completion of an engine output; without a detokenizer its text is empty.

        Args:
            parse: returns the value of an output and its text; None without a grammar.
        """
        ids, reason = output.token_ids, output.finish_reason
        text = ""
        tokens: tuple[str, ...] = ()
        if detokenizer is not None:
            text = text_of(detokenizer, prompt_ids, token_ids=ids, finish_reason=reason, stops=stops)
            tokens = detokenizer.pieces(prompt_ids, ids)
        parsed, parse_error = (None, None) if parse is None else parse(output, text)
        return cls(
            index=index,
            text=text,
            token_ids=ids,
            tokens=tokens,
            logprobs=output.logprobs,
            scores=output.scores,
            score=output.score,
            finish_reason=reason,
            top_logprobs=None if output.top_logprobs is None else named_tokens(output.top_logprobs, detokenizer),
            unmet=output.unmet,
            parsed=parsed,
            parse_error=parse_error,
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        facts = [_beginning(self), _count(len(self.token_ids), "token"), self.finish_reason]
        return f"<Completion {self.index}: {', '.join(facts)}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; non-finite numbers become None."""
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
            "parsed": _plain(self.parsed),
            "parse_error": self.parse_error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts and forward passes of one prompt.

    prompt_tokens: tokens of the prompt.
    completion_tokens: generated tokens of all outputs, including end-of-sequence tokens.
    cached_tokens: tokens of the prompt that prefix caching provided, from earlier prompts with the same beginning.
    forward_passes: forward passes of the model that included the prompt. Other prompts can share them; passes of a
        draft model do not count.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    forward_passes: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "cached_tokens": self.cached_tokens,
            "forward_passes": self.forward_passes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall-clock times of one prompt, measured from its submission.

    seconds: time until the last output finished.
    seconds_to_first_token: time in seconds until the first token was chosen; None if it was not measured.
    tokens_per_second: generated tokens of all outputs, divided by `seconds`.
    """

    seconds: float
    seconds_to_first_token: float | None = None
    tokens_per_second: float

    @classmethod
    def of(cls, seconds: float, *, tokens: int, seconds_to_first_token: float | None = None) -> Timing:
        """Return the timing of `tokens` generated in `seconds`."""
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
    """The result of one prompt. Prints as its text.

    prompt: the prompt's text; None for token ids without a tokenizer.
    prompt_token_ids: the tokens of the prompt.
    completions: the outputs, best first if the strategy ranks them; at least one.
    seed: the seed of the random draws; the same seed reproduces the result.
    usage: token counts and forward passes. timing: wall-clock times.
    config: the resolved config. strategy: name of the decoding strategy.
    echo: True if `text` starts with the prompt.
    prompt_logprobs: with `echo` and `logprobs`, natural-log probability of each prompt token under the model, with
        None for the first token. Else None. prompt_top_logprobs: the most probable tokens at the same positions, best
        first.
    trace: all tokens that the strategy tried, if `trace=True`; else None.
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
    prompt_top_logprobs: tuple[tuple[TopLogprob, ...] | None, ...] | None = None
    trace: Trace | None = None

    @property
    def text(self) -> str:
        """Text of the first completion; starts with the prompt if `echo` is on."""
        return self.text_of(self.completions[0])

    @property
    def texts(self) -> tuple[str, ...]:
        """Text of each completion, in order, as in `text`."""
        return tuple(self.text_of(completion) for completion in self.completions)

    @property
    def parsed(self) -> Any:
        """Value of the first completion's text under the request's grammar; see `Completion.parsed`."""
        return self.completions[0].parsed

    def text_of(self, completion: Completion) -> str:
        """Return the completion's text; starts with the prompt if `echo` is on."""
        return (self.prompt or "") + completion.text if self.echo else completion.text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        facts = [_beginning(self.completions[0]), self.strategy, _count(self.usage.completion_tokens, "token")]
        facts += [_count(len(self.completions), "completion")] if len(self.completions) > 1 else []
        return f"<{type(self).__name__}: {', '.join(facts)}>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield draw(self, "terminal")

    def plot(self, ax: Axes | Sequence[Axes] | None = None, *, logprobs: bool = False, max_tokens: int = 64) -> Figure:
        """Draw the probability of each token with matplotlib, in one panel per completion.

        If the option `logprobs` is on, a mark shows the most probable token of each position.

        Args:
            ax: axes to draw on, one per completion; None for a new figure.
            logprobs: draw natural-log probabilities instead of probabilities.
            max_tokens: number of drawn tokens per completion, at least 1.

        Returns:
            The figure.

        Raises:
            MissingExtra: if matplotlib is not installed.
            OptionError: if `ax` has another number of axes, or `max_tokens` is below 1.
        """
        from unspool.results.plots.generation import plot_generation

        return plot_generation(self, ax, logprobs=logprobs, max_tokens=max_tokens)

    def _repr_html_(self) -> str:
        return str(draw(self, "html"))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "prompt": self.prompt,
            "prompt_token_ids": list(self.prompt_token_ids),
            "prompt_logprobs": self.prompt_logprobs and [p and finite_or_none(p) for p in self.prompt_logprobs],
            "prompt_top_logprobs": self.prompt_top_logprobs
            and [position and [_top(entry) for entry in position] for position in self.prompt_top_logprobs],
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
    """A piece of streamed text. Its `text` is final: whole characters, without any part of a stop string.

    text: new text; can be "" in the last chunk of an output, which has the finish_reason.
    index: index of the output, from 0. prompt: index of the prompt in the call, from 0.
    token_ids, logprobs: tokens committed since the output's previous chunk. Their text can come in a later chunk, after
        the character is complete and no stop string can start in it. top_logprobs: as in Completion, for these tokens.
    finish_reason: as in Completion in the last chunk of an output; None in earlier chunks.
    is_last: True for the last chunk of the stream.
    tentative: preview of the text after this chunk, from the leading branch, if it is on. It is not final: each preview
        replaces the previous one. None means unchanged, "" means that the preview is gone.
    """

    text: str
    index: int = 0
    prompt: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    is_last: bool = False
    tentative: str | None = None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "text": self.text,
            "index": self.index,
            "prompt": self.prompt,
            "token_ids": list(self.token_ids),
            "logprobs": [finite_or_none(value) for value in self.logprobs],
            "finish_reason": self.finish_reason,
            "is_last": self.is_last,
            "tentative": self.tentative,
            "top_logprobs": self.top_logprobs and [[_top(entry) for entry in each] for each in self.top_logprobs],
        }


def _plain(value: Any) -> Any:
    """Return a parsed value as plain JSON; an instance of a pydantic class as its fields."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _beginning(completion: Completion) -> str:
    """Return the start of an output on one line: its text in quotes; token ids without a tokenizer."""
    if completion.token_ids and not completion.tokens:
        ids = ", ".join(map(str, completion.token_ids[:_SHOWN_IDS]))
        return f"[{ids}{', …' if len(completion.token_ids) > _SHOWN_IDS else ''}]"
    text = completion.text
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def named_tokens(
    positions: Sequence[Sequence[tuple[int, float]]], detokenizer: Detokenizer | None
) -> tuple[tuple[TopLogprob, ...], ...]:
    """Return pairs of token and log-probability with the texts of the tokens; in: one list per position."""
    tokenizer = None if detokenizer is None else detokenizer.tokenizer
    return tuple(
        tuple(TopLogprob(token, token_label(tokenizer, token), logprob) for token, logprob in best)
        for best in positions
    )


def finite_or_none(value: float) -> float | None:
    """Return the number; None if it is not finite, because JSON has only finite numbers."""
    return value if math.isfinite(value) else None


def _top(entry: TopLogprob) -> dict[str, Any]:
    return {"token_id": entry.token_id, "text": entry.text, "logprob": finite_or_none(entry.logprob)}
