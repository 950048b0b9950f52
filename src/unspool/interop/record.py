"""Keeps whole rows of scores for callers who ask for them, as transformers' output classes hold them.

Owns: the recorder, a processor that runs a request's whole chain and looks at it from both ends. Does not know:
strategies, padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch

from unspool.engine import Request
from unspool.engine.conversation import processor_chain
from unspool.processors.rows import FORBIDDEN
from unspool.protocols import Context, Processor, RowKey
from unspool.types import Output

Kept: TypeAlias = Literal["logits", "scores"]


class Recorder:
    """A request's own processors as one, which keeps copies of the rows that go in and of those that come out.

    Serves one request, in the "logits" space, of a strategy that asks each position of an output once.

    Args:
        request: whose processors run.
        names: what is kept: "logits" are the rows before the processors, "scores" those after.
    """

    name = "recorder"

    def __init__(self, request: Request, names: Iterable[Kept]) -> None:
        self._request = request
        self._chain: Sequence[Processor] = ()
        self._kept: dict[Kept, dict[tuple[int, int], torch.Tensor]] = {name: {} for name in names}

    def recorded(self) -> Request:
        """Return the request with this recorder in the place of its processors."""
        return replace(
            self._request, config=self._request.config.replace(processor_order=("user",)), processors=(self,)
        )

    def start(self, context: Context) -> tuple[Any, ...]:
        """Return the states of the request's processors after the prompt."""
        config = self._request.config
        self._chain, states = processor_chain(self._request, replace(context, config=config))
        return tuple(states)

    def advance(self, state: tuple[Any, ...], token: int) -> tuple[Any, ...]:
        """Return their states after one more token."""
        return tuple(each.advance(one, token) for each, one in zip(self._chain, state, strict=True))

    def fork(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return their states, to be advanced apart from these."""
        return tuple(each.fork(one) for each, one in zip(self._chain, state, strict=True))

    def apply(self, states: Sequence[tuple[Any, ...]], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores as the request's processors leave them. scores: [rows, vocab]"""
        self._keep("logits", scores, keys)
        for index, processor in enumerate(self._chain):
            scores = processor.apply([state[index] for state in states], scores, keys)
        self._keep("scores", scores, keys)
        return scores

    def rows(self, name: Kept, outputs: Sequence[Output]) -> list[list[torch.Tensor]]:
        """Return what was kept under this name: for each output, a row [vocab] for each of its tokens."""
        kept, before = self._kept[name], len(self._request.prompt)
        return [
            [kept[index, before + step] for step in range(len(output.token_ids))]
            for index, output in enumerate(outputs)
        ]

    def _keep(self, name: Kept, rows: torch.Tensor, keys: Sequence[RowKey]) -> None:
        if name in self._kept:
            copies = {(key.output, key.position): row.clone() for key, row in zip(keys, rows, strict=True)}
            self._kept[name].update(copies)


def steps_of(
    outputs: Sequence[Sequence[torch.Tensor]], pad_token_id: int | None, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Return the rows of all outputs, step by step.

    Once an output has ended, its rows say that pads follow: 0 for the pad and -inf for all other tokens, so that the
    pads of a sequence add nothing to its score.

    Args:
        outputs: for each output, a row [vocab] for each of its tokens.
        pad_token_id: None only where all outputs are equally long.
        device: where the rows are wanted.

    Returns:
        One tensor [outputs, vocab] float32 for each step of the longest output.
    """
    ended = torch.full_like(outputs[0][0], FORBIDDEN)
    if pad_token_id is not None and pad_token_id < len(ended):
        ended[pad_token_id] = 0.0
    longest = max(map(len, outputs))
    steps = ([rows[step] if step < len(rows) else ended for rows in outputs] for step in range(longest))
    return tuple(torch.stack(rows).to(device) for rows in steps)
