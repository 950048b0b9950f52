"""The exact distribution of the next token, with what each processor did to it.

Owns: which tokens are shown and in what order. Does not know: how they are drawn (unspool.results.render).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from unspool.errors import OptionError
from unspool.results.drawing import draw
from unspool.results.json_text import JsonText
from unspool.text.labels import token_label

if TYPE_CHECKING:
    import torch
    from rich.console import Console, ConsoleOptions, RenderResult

    from unspool.types import Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """One possible next token.

    rank: its place by the model's own probability, from 1; equal ones by token id.
    text: as it stands behind other text, so a leading space shows. Special tokens stand by name, parts of a character
        byte by byte, as in "<0xF0>".
    probability: the model's own. processed_probability: what it is drawn with after the processors, 0.0 where cut.
    kept: whether it can still be drawn. cut_by: the processor that forbade it; None where it is kept, or where the
        model itself gives it probability zero.
    """

    rank: int
    token_id: int
    text: str
    probability: float
    processed_probability: float
    kept: bool
    cut_by: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {
            "rank": self.rank,
            "token_id": self.token_id,
            "text": self.text,
            "probability": self.probability,
            "processed_probability": self.processed_probability,
            "kept": self.kept,
            "cut_by": self.cut_by,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NextTokens(JsonText):
    """The distribution the next token is drawn from. Prints as a bar chart, in a terminal and in a notebook.

    A sequence of the entries shown: the tokens with the greatest probability, before or after processing, sorted by
    the probability after it, then by the one before, then by token id.

    entries: the tokens shown. processors: those that ran, in order.
    probabilities: [vocab] float64, sum 1: the model's own. processed_probabilities: [vocab] float64, sum 1.
    num_kept: how many tokens of the vocabulary can still be drawn. prompt: the prompt's text, where there is one.
    """

    entries: tuple[NextToken, ...]
    processors: tuple[str, ...]
    probabilities: torch.Tensor
    processed_probabilities: torch.Tensor
    num_kept: int
    prompt: str | None = None

    @classmethod
    def from_distribution(
        cls, distribution: Distribution, tokenizer: Any, *, limit: int = 20, prompt: str | None = None
    ) -> NextTokens:
        """Read a distribution of the engine.

        Args:
            distribution: of one position.
            tokenizer: names the tokens; None where the model has none.
            limit: most tokens shown, at least 1.
            prompt: its text, for the heading.

        Raises:
            OptionError: `limit` is below 1.
        """
        if limit < 1:
            raise OptionError("limit", limit, "must be at least 1", "it counts the tokens shown")
        raw, processed = distribution.logprobs.double().exp(), distribution.scores.double().softmax(-1)
        shown = _most_probable(raw, processed, limit)
        return cls(
            entries=tuple(_entry(distribution, token, raw, processed, tokenizer) for token in shown),
            processors=distribution.processors,
            probabilities=raw,
            processed_probabilities=processed,
            num_kept=int((distribution.scores > -math.inf).sum()),
            prompt=prompt,
        )

    @overload
    def __getitem__(self, index: int) -> NextToken: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[NextToken, ...]: ...

    def __getitem__(self, index: int | slice) -> NextToken | tuple[NextToken, ...]:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[NextToken]:
        return iter(self.entries)

    @property
    def vocab_size(self) -> int:
        return int(self.probabilities.shape[0])

    @property
    def hidden_probability(self) -> float:
        """Processed probability of the tokens that are not shown, together."""
        return max(0.0, 1.0 - math.fsum(entry.processed_probability for entry in self.entries))

    def __repr__(self) -> str:
        best = max(self.entries, key=lambda entry: entry.processed_probability)
        first = f"{best.text!r} {best.processed_probability:.2%}"
        return f"<NextTokens: {first}, {self.num_kept} of {self.vocab_size} tokens can be drawn>"

    def __str__(self) -> str:
        return str(draw(self, "plain"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield draw(self, "terminal", width=options.max_width)

    def _repr_html_(self) -> str:
        return str(draw(self, "html"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold: the tokens shown, and the mass of the rest."""
        return {
            "prompt": self.prompt,
            "processors": list(self.processors),
            "tokens": [entry.to_dict() for entry in self.entries],
            "num_kept": self.num_kept,
            "vocab_size": self.vocab_size,
            "hidden_probability": self.hidden_probability,
        }


def _most_probable(raw: torch.Tensor, processed: torch.Tensor, limit: int) -> list[int]:
    """Return the tokens to show, in the order to show them."""
    import torch

    greatest = torch.maximum(raw, processed)
    chosen = greatest.argsort(descending=True, stable=True)[:limit].tolist()
    return sorted(chosen, key=lambda token: (-processed[token].item(), -raw[token].item(), token))


def _entry(
    distribution: Distribution, token: int, raw: torch.Tensor, processed: torch.Tensor, tokenizer: Any
) -> NextToken:
    logprobs, cut = distribution.logprobs, int(distribution.cut_by[token])
    before = (logprobs > logprobs[token]).sum() + (logprobs[:token] == logprobs[token]).sum()
    return NextToken(
        rank=int(before) + 1,
        token_id=token,
        text=token_label(tokenizer, token),
        probability=float(raw[token]),
        processed_probability=float(processed[token]),
        kept=bool(distribution.scores[token] > -math.inf),
        cut_by=None if cut < 0 else distribution.processors[cut],
    )
