"""The mean log-probability of an output's tokens after the processors, and before temperature and truncation.

Owns: the recording of normalizers. Does not know: thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unspool.protocols import Context, Processor, RowKey
from unspool.types import Output


class _Node:
    """A node of the tree of tokens. norm: logsumexp of its row of scores."""

    __slots__ = ("children", "norm")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.norm = 0.0


class Confidence(Processor):
    """Records the normalizer of each row of one request, and leaves the scores unchanged.

    Use one object per request, as the last of its own processors.
    """

    name = "confidence"

    def __init__(self) -> None:
        self._root = _Node()

    def start(self, context: Context) -> _Node:
        """Return the state before the first token."""
        return self._root

    def advance(self, state: _Node, token: int) -> _Node:
        """Return the state after one more token."""
        return state.children.setdefault(token, _Node())

    def apply(self, states: Sequence[_Node], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores unchanged. scores: [rows, vocab]"""
        for state, norm in zip(states, scores.logsumexp(1).tolist(), strict=True):
            state.norm = norm
        return scores

    def mean_logprob(self, output: Output, temperature: float) -> float:
        """Return the mean log-probability of the output's tokens.

        temperature: by which the scores were divided afterwards.
        """
        node, total = self._root, 0.0
        for token, score in zip(output.token_ids, output.scores, strict=True):
            total += score * temperature - node.norm
            node = node.children.get(token, node)
        return total / len(output.token_ids)
