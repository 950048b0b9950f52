"""transformers' StoppingCriteria objects as our criteria: each step they get the whole batch of the call.

Owns: the matrices that they get. Does not know: the effect of an end on a strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from transformers.generation import stopping_criteria

from unspool.interop.batch_layout import BatchLayout, TokenPath
from unspool.interop.returned import verdicts
from unspool.protocols import Context, Criterion

Scores: TypeAlias = tuple[torch.Tensor, ...]
Question: TypeAlias = tuple[list[list[int]], dict[int, TokenPath]]
"""The tokens of each batch row of a call, and batch row --> path that receives the row's verdict."""


class TransformersCriterion(Criterion):
    """An object of transformers, asked about all tokens that a step could add.

    It gets (input_ids, scores) as in transformers: one row per batch row of the layout, with one token more. In a beam
    search it gets the `width` best continuations of each prompt instead, best first. scores: those of all steps so far
    if the call needs them, else None. If several tokens of one row are possible (contrastive search), there is one call
    per token.

    Args:
        criterion: the object; its class name is the finish reason.
        layout: of the call.
        width: continuations per prompt that a beam search looks at; None for other strategies.
        values: returns the scores of (path, token) pairs in the current step.
        steps: count --> the scores of the first steps, or None if the call does not need them.
    """

    prepares = True

    def __init__(
        self,
        criterion: Callable[..., Any],
        layout: BatchLayout,
        *,
        width: int | None,
        values: Callable[[Sequence[tuple[TokenPath, int]]], list[float]],
        steps: Callable[[int], Scores | None],
    ) -> None:
        self.name = type(criterion).__name__
        self._criterion, self._layout, self._width = criterion, layout, width
        self._values, self._steps = values, steps
        self._verdicts: dict[TokenPath, bool] = {}
        self._error: Exception | None = None

    def start(self, context: Context) -> TokenPath:
        """Return the path of the request that starts now."""
        return self._layout.newest

    def advance(self, state: TokenPath, token: int) -> TokenPath:
        """Return the path with one more token."""
        return state.follow(token)

    def ends(self, state: TokenPath, token: int) -> bool:
        """Return the verdict on this token; False for continuations that a beam search does not look at."""
        return self._verdicts.get(state.follow(token), False)

    def prepare(self, pairs: Sequence[tuple[TokenPath, int]]) -> None:
        """Get the verdicts on all tokens of the step."""
        if self._error is not None:
            raise self._error  # the engine retries row by row; the object must not be called again
        self._verdicts = {}
        try:
            for outputs, paths in self._questions(pairs):
                self._ask(outputs, paths)
        except Exception as error:
            self._error = error
            raise

    def _questions(self, pairs: Sequence[tuple[TokenPath, int]]) -> list[Question]:
        """Return the calls of the step."""
        if self._width is not None:
            return [self._best(pairs, self._width)]
        rows = []
        seen: dict[TokenPath, int] = {}
        for path, token in pairs:
            batch_rows = self._layout.batch_rows[path]
            # Outputs with equal tokens share a path: give each its own batch row, in turn.
            rows.append((path.follow(token), batch_rows[seen.get(path, 0) % len(batch_rows)]))
            seen[path] = seen.get(path, 0) + 1
        calls = self._layout.calls(rows)
        return [
            (call.outputs, {batch_row: rows[row][0] for batch_row, row in call.engine_rows.items()}) for call in calls
        ]

    def _best(self, pairs: Sequence[tuple[TokenPath, int]], width: int) -> Question:
        """Return the `width` best continuations of each prompt, best first; the best one repeats to fill the rows."""
        found: list[list[TokenPath]] = [[] for _ in range(self._layout.num_prompts)]
        for (path, token), score in zip(pairs, self._values(pairs), strict=True):
            child = path.follow(token)
            child.total = path.total + score
            found[path.prompt].append(child)
        length = 1 + max(path.length for path, _ in pairs)
        outputs: list[list[int]] = []
        ours: dict[int, TokenPath] = {}
        for prompt, children in enumerate(found):
            children = sorted(children, key=lambda child: -child.total)[:width]
            ours |= enumerate(children, prompt * width)
            rows = [child.tokens for child in children] or [
                self._layout.idle_tokens(prompt * self._layout.rows_per_prompt, length)
            ]
            outputs += rows + rows[:1] * (width - len(rows))
        return outputs, ours

    def _ask(self, outputs: list[list[int]], paths: dict[int, TokenPath]) -> None:
        ids = self._layout.ids(outputs, self._layout.device)
        returned, length = self._criterion(ids, self._steps(len(outputs[0]))), len(outputs[0])
        said = verdicts(returned, len(outputs), by=self.name, when=f"at new token {length}")
        for row, path in paths.items():
            self._verdicts[path] = self._verdicts.get(path, False) or said[row]


class Ends(NamedTuple):
    """Criteria, sorted: those with the meaning of an option, and all others.

    max_length: the lowest of the given ones; it counts the width of the batch. eos_token_id: of the last given one.
    """

    max_length: int | None
    eos_token_id: tuple[int, ...] | None
    others: tuple[Any, ...]


def sort_criteria(given: Sequence[Any]) -> Ends:
    """Sort criteria by exact class. As in transformers, subclasses of its own criteria belong to the others."""
    longest: list[int] = []
    ends: tuple[int, ...] | None = None
    others: list[Any] = []
    for each in given:
        if type(each) is stopping_criteria.MaxLengthCriteria:
            longest.append(each.max_length)
        elif type(each) is stopping_criteria.EosTokenCriteria:
            ends = tuple(each.eos_token_id.flatten().tolist())
        else:
            others.append(each)
    return Ends(min(longest, default=None), ends, tuple(others))


REPLACED: Final[dict[type, str]] = {
    stopping_criteria.MaxTimeCriteria: "max_time",
    stopping_criteria.StopStringCriteria: "stop_strings",
}
"""Classes of criteria that replace an option: class --> option."""
