"""One batch that transformers' `generate` has prepared, run by the calls of its decode loop.

Owns the batch: its rows with their pads, one cache for all rows, the arguments of the model's forward, and the outputs
of every call. For calls that read more of a forward than logits, or that bring arguments or a cache of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from transformers.generation.utils import ALL_CACHE_NAMES

from unspool.errors import ModelError
from unspool.protocols import Runtime
from unspool.runtimes.generic.last_tokens import last_tokens, logits_of, with_last_tokens
from unspool.runtimes.kv.check_feeds import check_feeds
from unspool.runtimes.kv.limits import limits_of
from unspool.runtimes.model_info import describe, text_config
from unspool.runtimes.wrap.wrapped import WrappedModel
from unspool.source_info import SourceInfo
from unspool.types import Feed, ModelInfo, Rows, Seq

Written: TypeAlias = "tuple[int, ...]"
"""The output tokens of a row so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBatch:
    """The arguments that transformers passes to a decoding method.

    input_ids: [prompts * rows_per_prompt, width], the rows of a prompt adjacent. config: transformers', prepared.
    arguments: further arguments of the model's `prepare_inputs_for_generation`, with the cache and `use_cache`.
    """

    input_ids: torch.Tensor
    config: Any
    arguments: Mapping[str, Any]
    rows_per_prompt: int


_FIELDS: Final = {
    "output_attentions": (("attentions",), ("decoder_attentions", "cross_attentions")),
    "output_hidden_states": (("hidden_states",), ("decoder_hidden_states",)),
}
"""Argument of the forward --> fields of its output: those of a decoder, those of an encoder-decoder."""


def cache_name_of(arguments: Mapping[str, Any]) -> str | None:
    """Return the name of the cache among the arguments of a call; None without a cache."""
    return next((name for name in ALL_CACHE_NAMES if arguments.get(name) is not None), None)


class StepOutput(NamedTuple):
    """The output of one call.

    fields: attentions and hidden states by name, those that the call was asked for. rows: (prompt, output tokens so
    far) --> row of the batch, of live sequences.
    """

    fields: dict[str, Any]
    rows: dict[tuple[int, Written], int]


@dataclass(slots=True)
class _Sequence:
    """A live sequence. prompt: its index. row: of the batch. written: its output tokens that were read."""

    prompt: int
    row: int
    written: Written = ()


class PreparedBatchRuntime(Runtime):
    """Runs a prepared batch on the caller's own modules, for one call. Follows the contract of Runtime.

    All sequences have one length and advance together, with one call of the model per step, as in transformers: a row
    without a feed reads the last token of its output, and then pads. The first feeds are the prompts. Sequences cannot
    be shortened.

    Args:
        model: a loaded transformers model.
        batch: its prompts are read when the runtime is made.
        prompts: token ids of each prompt, without pads.
        pad_token_id: read by rows that have ended; None for 0.
        source: facts about the model's encoder; None for a decoder.
        needs_source: True if requests bring a source; the batch has its tensors already.

    Attributes:
        steps: the attentions and hidden states of all calls so far.
        arguments: those of the next call, such as the cache and the encoder's output.
        ended: returns (prompt, output tokens) of each output that has ended, its last token included.
    """

    info: ModelInfo

    def __init__(
        self,
        model: Any,
        batch: PreparedBatch,
        *,
        prompts: Sequence[Sequence[int]],
        pad_token_id: int | None,
        source: SourceInfo | None = None,
        needs_source: bool = False,
    ) -> None:
        self._wrapped = WrappedModel(model, owns_model=False, patch="the call reads the model's own forward")
        self._rows_per_prompt, self._pad, self.source = batch.rows_per_prompt, pad_token_id or 0, source
        self._sequences: dict[Seq, _Sequence] = {}
        self._unread = dict(enumerate(map(tuple, prompts)))
        self._failure: Exception | None = None
        self.steps: list[StepOutput] = []
        self.ended: Callable[[], Iterable[tuple[int, Written]]] = tuple
        self.arguments, self._ids = dict(batch.arguments), batch.input_ids
        last = None if model.config.is_encoder_decoder else last_tokens(self.arguments)
        if last is not None:
            self.arguments = with_last_tokens(self.arguments, last)
        with self._wrapped.calling() as module:
            first = not batch.config.is_assistant
            output = module._prefill(self._ids, batch.config, self.arguments, is_first_iteration=first)
            begun: dict[tuple[int, tuple[int, ...]], int] = {
                (prompt, ()): prompt * batch.rows_per_prompt for prompt in self._unread
            }
            self._logits = self._take(output, begun, last)
        info = describe(
            model,
            text_config(model),
            vocab_size=self._logits.shape[-1],
            backend="transformers' own batch and cache, for a call that reads more than logits or brings arguments",
            batch_invariance_obstacle="it runs on transformers' own batch, which reads rows together",
            hidden_states=False,
            num_layers=None,
            reads_whole=True,
            limits=limits_of(None, None, bytes_per_token=0, device=self._wrapped.device),
            bytes_per_token=None,
        )
        self.info = replace(info, needs_source=needs_source)

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """True, because the caller's own modules run."""
        return True

    @property
    def cache(self) -> Any:
        """The cache of all rows, as transformers returns it; None without one."""
        return self.arguments.get(self._cache_name) if self._cache_name else None

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and return the asked rows; see Runtime.forward.

        Raises:
            ModelError: if a prompt needs more rows than the batch has, or if a feed of several tokens continues one.
        """
        check_feeds(self.info, feeds, takes_source=self.info.needs_source)
        if self._failure is not None:
            raise self._failure  # the failed call can have changed the cache
        grown = [feed for feed in feeds if feed.seq in self._sequences]
        for feed in feeds:
            if feed.seq not in self._sequences:
                self._open(feed)
        if grown:
            assert len(grown) == len(feeds), "the prompts of a lockstep group are read before any of them continues"
            self._advance(grown)
        return Rows(self._logits[[self._sequences[feed.seq].row for feed in feeds if feed.asked]])

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; the next call gives it a row of its own. See Runtime.fork."""
        self._sequences[child] = replace(self._sequences[seq])

    def truncate(self, seq: Seq, keep: int) -> int:
        """Raise a ModelError: rows of one batch have one length."""
        raise ModelError(f"{self.info.name} runs on transformers' own batch; its rows cannot be shortened")

    def release(self, seq: Seq) -> None:
        """Forget a sequence; its row stays in the batch. See Runtime.release."""
        self._sequences.pop(seq, None)

    def read(self, written: torch.Tensor) -> None:
        """Read output tokens of all rows: in one call, or token by token into recurrent states.

        Args:
            written: [rows, tokens].
        """
        module = self._wrapped.module
        size = 1 if getattr(module, "_is_stateful", False) else max(1, written.shape[1])
        for part in torch.split(written, size, dim=1) if written.numel() else ():
            count, has_encoder = part.shape[1], module.config.is_encoder_decoder
            self._ids = torch.cat([self._ids, part.to(self._ids.device)], dim=1)
            with self._wrapped.calling():
                for _ in range(count - 1):  # the arguments are already those of a call with one token
                    self.arguments = module._update_model_kwargs_for_generation(
                        {}, self.arguments, is_encoder_decoder=has_encoder
                    )
                inputs = module.prepare_inputs_for_generation(self._ids, next_sequence_length=count, **self.arguments)
                self._take(module(**inputs, return_dict=True), {})

    def row_at(self, step: int, prompt: int, written: Written) -> int | None:
        """Return the row that had these output tokens at a step, or their beginning if it ended before; None if none.

        step: 0 for the call that read the prompts.
        """
        for length in range(min(step, len(written)), -1, -1):
            row = self.steps[length].rows.get((prompt, written[:length]))
            if row is not None:
                return row
        return None

    def _open(self, feed: Feed) -> None:
        """Assign the first row of the first unread prompt with the feed's tokens."""
        prompt = next(prompt for prompt, tokens in self._unread.items() if tokens == tuple(feed.tokens))
        del self._unread[prompt]
        self._sequences[feed.seq] = _Sequence(prompt, prompt * self._rows_per_prompt)

    def _advance(self, feeds: Sequence[Feed]) -> None:
        """Read the next token of every sequence by one call."""
        order = list(range(len(self._ids)))
        column = [self._pad] * len(order)
        rows: dict[tuple[int, Written], int] = {}
        for feed, row in zip(feeds, self._new_rows(feeds), strict=True):
            if len(feed.tokens) != 1:
                raise ModelError(f"{self.info.name} runs on transformers' own batch, which reads token by token")
            sequence = self._sequences[feed.seq]
            order[row], sequence.row, column[row] = sequence.row, row, feed.tokens[0]
            sequence.written = (*sequence.written, *feed.tokens)
            rows[sequence.prompt, sequence.written] = row
        for prompt, written in self.ended():
            last = self.row_at(len(self.steps) - 1, prompt, written)
            if last is not None and len(written) == len(self.steps):
                column[last], rows[prompt, written] = written[-1], last
        try:
            with self._wrapped.calling() as module:
                self._reorder(module, order)
                newest = torch.tensor(column, device=self._ids.device)
                self._ids = torch.cat([self._ids[order], newest[:, None]], dim=1)
                count = 1 if self.arguments.get("use_cache") else None
                inputs = module.prepare_inputs_for_generation(self._ids, next_sequence_length=count, **self.arguments)
                self._logits = self._take(module(**inputs, return_dict=True), rows)
        except Exception as error:
            self._failure = error
            raise

    def _new_rows(self, feeds: Sequence[Feed]) -> list[int]:
        """Return a row for each feed: in their order if they need all rows of a prompt, else preferably its own."""
        sequences = [self._sequences[feed.seq] for feed in feeds]
        found: dict[int, int] = {}
        for prompt in {sequence.prompt for sequence in sequences}:
            mine = [index for index, sequence in enumerate(sequences) if sequence.prompt == prompt]
            first = prompt * self._rows_per_prompt
            free = dict.fromkeys(range(first, first + self._rows_per_prompt))
            if len(mine) > len(free):
                allowed = f"and this strategy needs {len(mine)} at once"
                raise ModelError(f"transformers' own batch has {len(free)} rows per prompt, {allowed}")
            if len(mine) < len(free):
                for index in mine:
                    if sequences[index].row in free:
                        found[index] = sequences[index].row
                        del free[found[index]]
            left = iter(list(free))
            found |= {index: next(left) for index in mine if index not in found}
        return [found[index] for index in range(len(feeds))]

    @property
    def _cache_name(self) -> str | None:
        return cache_name_of(self.arguments)

    def _reorder(self, module: Any, order: list[int]) -> None:
        """Move the rows of the cache. order: for each row, the row that it continues."""
        name = self._cache_name
        if name is None or order == list(range(len(order))):
            return
        index = torch.tensor(order, device=self._ids.device)
        if hasattr(module, "_reorder_cache"):
            self.arguments[name] = module._reorder_cache(self.cache, index)
        elif hasattr(self.cache, "reorder_cache"):
            self.cache.reorder_cache(index)
        else:
            raise ModelError(f"the rows of a {type(self.cache).__name__} cannot be reordered, as beams need")

    def _take(
        self, output: Any, rows: dict[tuple[int, Written], int], last: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Record the output of a call, and return the logits behind the last token of each row. --> [rows, vocab]

        last: the columns of these tokens, see `last_tokens`.
        """
        module = self._wrapped.module
        self.arguments = module._update_model_kwargs_for_generation(
            output, self.arguments, is_encoder_decoder=module.config.is_encoder_decoder
        )
        asked = [fields for argument, fields in _FIELDS.items() if self.arguments.get(argument)]
        names = [name for fields in asked for name in fields[module.config.is_encoder_decoder]]
        self.steps.append(StepOutput({name: output.get(name) for name in names}, rows))
        return logits_of(output.logits, last)
