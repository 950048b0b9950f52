"""NextTokens: the exact distribution of the next token, before and after the logits processors.

Owns: the selection and order of the shown tokens. Does not know: how they are drawn (unspool.results.render).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from unspool.errors import OptionError
from unspool.results.drawing import Drawn
from unspool.results.json_text import JsonText
from unspool.text.labels import token_label

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

    from unspool.types import Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """One possible next token.

    rank: rank by the model's probability, from 1; ties are ordered by token id.
    text: the token's text inside a longer text, with its leading space. A special token is its name; an incomplete
        character is its bytes, as in "<0xF0>".
    probability: probability under the model, before processors.
    processed_probability: probability after the processors; 0.0 if the token was removed.
    kept: True if the token can be drawn after the processors.
    cut_by: name of the processor that removed the token; None if it is kept or if its model probability is zero.
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
class NextTokens(Drawn, JsonText):
    """The distribution of the next token. Prints as a bar chart, in a terminal and in a notebook.

    A sequence of the shown entries: the tokens with the highest probability before or after processing. They are sorted
    by processed probability, then by model probability (both descending), then by token id.

    entries: the shown tokens. processors: names of the applied processors, in order.
    probabilities: [vocab] float64, sum 1: the model's distribution, before processors.
    processed_probabilities: [vocab] float64, sum 1: the distribution after processors.
    num_kept: number of tokens in the vocabulary that can be drawn.
    prompt: the prompt's text; None without a text prompt.
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
        """Return the result for a distribution of the engine.

        Args:
            distribution: the distribution at one position.
            tokenizer: the tokenizer, for the text of tokens; None if the model lacks one.
            limit: maximum number of shown tokens, at least 1.
            prompt: the prompt's text, for the heading.

        Raises:
            OptionError: if `limit` is below 1.
        """
        if limit < 1:
            raise OptionError("limit", limit, "must be at least 1", "it is the number of shown tokens")
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
        """Total processed probability of the tokens that are not shown."""
        return max(0.0, 1.0 - math.fsum(entry.processed_probability for entry in self.entries))

    def __repr__(self) -> str:
        best = max(self.entries, key=lambda entry: entry.processed_probability)
        first = f"{best.text!r} {best.processed_probability:.2%}"
        return f"<NextTokens: {first}, {self.num_kept} of {self.vocab_size} tokens can be drawn>"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the bars of the shown tokens with matplotlib, before (model) and after (drawn) the processors.

        Cut tokens are hatched, with the processor that cut them.

        Args:
            ax: axes to draw on; None for a new figure.

        Returns:
            The axes.

        Raises:
            MissingExtra: if matplotlib is not installed.
        """
        from unspool.results.plots.next_tokens import plot_next_tokens

        return plot_next_tokens(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: the shown tokens, and the total probability of all others."""
        return {
            "prompt": self.prompt,
            "processors": list(self.processors),
            "tokens": [entry.to_dict() for entry in self.entries],
            "num_kept": self.num_kept,
            "vocab_size": self.vocab_size,
            "hidden_probability": self.hidden_probability,
        }


def _most_probable(raw: torch.Tensor, processed: torch.Tensor, limit: int) -> list[int]:
    """Return the tokens to show, in display order."""
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
