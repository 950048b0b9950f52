"""transformers' LogitsProcessor objects as our processors: each step they get the whole batch of the call.

Owns: the matrices that they get and return, and the place of each in the chain. Does not know: requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from transformers.generation import logits_process

from unspool.interop.batch_layout import BatchLayout, ObjectCall, TokenPath
from unspool.interop.returned import are_numbers, check_scores, token_ids
from unspool.processors import DEFAULT_ORDER
from unspool.processors.rows import FORBIDDEN
from unspool.protocols import Context, Processor, RowKey

PREFIX: Final = "prefix_allowed_tokens_fn"
GUIDANCE: Final = "guidance_scale"
LAST: Final = "last"
USER: Final = "user"


def order_of(order: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of all stages: our processors, and the places of transformers' objects, in transformers' order.

    order: of our processors; None for the default.
    """
    found = [GUIDANCE]
    for name in order or DEFAULT_ORDER:
        found += [PREFIX] if name == "forced_bos_token_id" else []
        found += [LAST] if name == "renormalize_logits" else []
        found.append(name)
    return tuple(found)


class TransformersProcessors(Processor):
    """Objects of transformers, called one after the other with the same rows as in transformers.

    They get (input_ids, scores): one row per batch row of the layout with the caller's padded prompt, and a matrix of
    scores that they can change. A batch row without an engine row has uniform scores. Only the scores of engine rows
    are read back.

    Args:
        objects: callables of (input_ids, scores).
        layout: of the call.
        name: the place in the chain.
    """

    def __init__(self, objects: Sequence[Callable[[Any, Any], Any]], layout: BatchLayout, name: str) -> None:
        self.name = name
        self._objects, self._layout = tuple(objects), layout
        self._error: Exception | None = None

    def start(self, context: Context) -> TokenPath:
        """Return the path of the request that starts now."""
        return self._layout.newest

    def advance(self, state: TokenPath, token: int) -> TokenPath:
        """Return the path with one more token."""
        return state.follow(token)

    def fork(self, state: TokenPath) -> TokenPath:
        """Return the path: it is immutable."""
        return state

    def apply(self, states: Sequence[TokenPath], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores after all objects. scores: [rows, vocab]"""
        if self._error is not None:
            raise self._error  # the engine retries row by row; the objects must not be called again
        layout = self._layout
        rows = [(path, layout.batch_row_of(path, key.output)) for path, key in zip(states, keys, strict=True)]
        try:
            for call in layout.calls(rows):
                self._apply(call, scores)
        except Exception as error:
            self._error = error
            raise
        return scores

    def _apply(self, call: ObjectCall, scores: torch.Tensor) -> None:
        ids, seen = self._layout.ids(call.outputs, scores.device), _matrix(call, scores)
        batch_rows, when = list(call.engine_rows), f"at new token {len(call.outputs[0]) + 1}"
        if not are_numbers(seen[batch_rows]):
            return  # the model's own NaN, which the engine reports
        for each in self._objects:
            seen = check_scores(each(ids, seen), like=seen, rows=batch_rows, by=type(each).__name__, when=when)
        scores[list(call.engine_rows.values())] = seen[batch_rows].to(scores)


def _matrix(call: ObjectCall, scores: torch.Tensor) -> torch.Tensor:
    """Return a new matrix with the scores of each batch row. --> [batch rows, vocab] float32"""
    rows = torch.tensor([0 if row is None else row for row in call.shown], device=scores.device)
    seen = scores[rows]
    empty = [batch_row for batch_row, row in enumerate(call.shown) if row is None]
    if empty:
        seen[empty] = -math.log(scores.shape[1])
    return seen


class PrefixAllowed(Processor):
    """Allow only the tokens that `prefix_allowed_tokens_fn(batch_id, input_ids)` returns for a row.

    The function gets the index of the prompt, and the row with the caller's padded prompt. It returns token ids in any
    iterable, array or tensor, or a boolean mask of the vocabulary. If all tokens that it allows for a prompt's beams
    are forbidden already, they are allowed with score 0, as in transformers.
    """

    name = PREFIX

    def __init__(self, function: Callable[[int, torch.Tensor], Any], layout: BatchLayout) -> None:
        self._function, self._layout = function, layout

    def start(self, context: Context) -> TokenPath:
        """Return the path of the request that starts now."""
        return self._layout.newest

    def advance(self, state: TokenPath, token: int) -> TokenPath:
        """Return the path with one more token."""
        return state.follow(token)

    def fork(self, state: TokenPath) -> TokenPath:
        """Return the path: it is immutable."""
        return state

    def apply(self, states: Sequence[TokenPath], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores with all other tokens forbidden. scores: [rows, vocab]"""
        mask = torch.full_like(scores, FORBIDDEN)
        prompts: dict[int, list[int]] = {}
        for row, (path, key) in enumerate(zip(states, keys, strict=True)):
            returned = self._function(path.prompt, self._layout.row_ids(path, scores.device))
            when = f"for prompt {path.prompt}, at new token {path.length + 1}"
            allowed = token_ids(returned, scores.shape[1], option=PREFIX, when=when)
            mask[row, allowed.to(scores.device)] = 0.0
            group = path.prompt if self._layout.ranked else path.prompt * self._layout.rows_per_prompt + key.output
            prompts.setdefault(group, []).append(row)
        masked = scores + mask
        for rows in prompts.values():
            if bool((masked[rows] == FORBIDDEN).all()):
                masked[rows] = mask[rows]
        return masked


class Default(NamedTuple):
    """A processor that transformers makes from an option.

    option: its name, and the place in the chain. attribute: the processor's attribute with the unchanged option value;
    None without one. yields: True if a processor given by the caller replaces it.
    """

    option: str
    attribute: str | None = None
    yields: bool = True


DEFAULTS: Final[dict[type, Default]] = {
    logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor: Default(GUIDANCE, "guidance_scale"),
    logits_process.SequenceBiasLogitsProcessor: Default("sequence_bias"),
    logits_process.EncoderRepetitionPenaltyLogitsProcessor: Default("encoder_repetition_penalty"),
    logits_process.RepetitionPenaltyLogitsProcessor: Default("repetition_penalty", "penalty"),
    logits_process.NoRepeatNGramLogitsProcessor: Default("no_repeat_ngram_size", "ngram_size"),
    logits_process.EncoderNoRepeatNGramLogitsProcessor: Default("encoder_no_repeat_ngram_size", "ngram_size"),
    logits_process.NoBadWordsLogitsProcessor: Default("bad_words_ids"),
    logits_process.MinLengthLogitsProcessor: Default("min_length", "min_length"),
    # transformers also makes a MinLength processor from this option, so a caller's object is added to it.
    logits_process.MinNewTokensLengthLogitsProcessor: Default("min_new_tokens", "min_new_tokens", yields=False),
    logits_process.PrefixConstrainedLogitsProcessor: Default(PREFIX),
    logits_process.ForcedBOSTokenLogitsProcessor: Default("forced_bos_token_id", "bos_token_id"),
    logits_process.ForcedEOSTokenLogitsProcessor: Default("forced_eos_token_id"),
    logits_process.InfNanRemoveLogitsProcessor: Default("remove_invalid_values"),
    logits_process.ExponentialDecayLengthPenalty: Default("exponential_decay_length_penalty"),
    logits_process.SuppressTokensLogitsProcessor: Default("suppress_tokens"),
    logits_process.SuppressTokensAtBeginLogitsProcessor: Default("begin_suppress_tokens"),
}
"""Processors that transformers makes from options, in its order, before the caller's objects."""

WARPERS: Final[dict[type, str]] = {
    logits_process.TemperatureLogitsWarper: "temperature",
    logits_process.TopHLogitsWarper: "top_h",
    logits_process.TopKLogitsWarper: "top_k",
    logits_process.TopPLogitsWarper: "top_p",
    logits_process.MinPLogitsWarper: "min_p",
    logits_process.TypicalLogitsWarper: "typical_p",
    logits_process.EpsilonLogitsWarper: "epsilon_cutoff",
    logits_process.EtaLogitsWarper: "eta_cutoff",
    logits_process.LogitNormalization: "renormalize_logits",
}
"""Processors that transformers makes from options after the caller's objects, which never replace these."""
