"""A model with a source made ready for passes over buckets: attention set, layers packed, tried once.

Owns the module that runs and how it is called. Knows nothing of sequences: a pass is a bucket of rows.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.kv.attention import ATTENTION_NAME, Attends, attending, cache_dtype
from unspool.runtimes.kv.pool import LayerLayout, Layout, SlotPool
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.model_info import trial_length
from unspool.runtimes.seq2seq.attention import EqualLengthAttention, FirstTokenAttention
from unspool.runtimes.seq2seq.cross_cache import CrossBatchCache, joint_cache
from unspool.runtimes.seq2seq.encoder_cache import (
    EncodedSource,
    FirstStepKV,
    KeysValues,
    SourceTable,
    adapter_of,
    stacked,
    visible,
)
from unspool.runtimes.seq2seq.equal_length_batch import EqualLengthBatch
from unspool.runtimes.seq2seq.self_cache import SelfCache
from unspool.runtimes.seq2seq.source_info import decoder_limit, source_obstacle
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.agreement import allowed_distance, distance
from unspool.runtimes.wrap.hooks import HeadHook
from unspool.runtimes.wrap.model_copy import AttentionNames, fingerprint, set_attention
from unspool.runtimes.wrap.wrapped import WrappedModel
from unspool.types import Rows, Source

Attention: TypeAlias = Literal["ours", "own"]


class _Trial(NamedTuple):
    """Two rows of tokens behind random sources, and the model's own logits of them, [2, tokens, vocab]."""

    states: torch.Tensor
    tokens: list[list[int]]
    reference: torch.Tensor
    opening: FirstStepKV


class Seq2SeqModel:
    """A model that encodes sources and runs passes over buckets.

    Args:
        model: a loaded encoder-decoder, or GIT.
        own: whether the model is ours to change; see Host.
        pack: see `pack_linears`.
        attention: "ours" reads the decoder's keys and values where they lie; "own" is the model's, which needs those of
            all rows in one tensor; "auto" is "ours" where the decoder lets us.
        names, patch: `attention` and `patch` of the Host.

    Attributes:
        layout: what each decoder layer keeps of a token.
        attention: which of the two is in use.
        vocab_size: width of the logits.
        reads_head: whether what the head reads can be had.
        version: counts how often the user's weights were found changed.

    Raises:
        ModelError: the model cannot run so; the message says why.
    """

    layout: Layout
    attention: Attention
    vocab_size: int
    reads_head: bool

    def __init__(
        self,
        model: Any,
        *,
        own: bool,
        pack: Pack = "auto",
        attention: Attention | Literal["auto"] = "auto",
        names: AttentionNames | None = None,
        patch: str = "",
    ) -> None:
        if reason := source_obstacle(model):
            raise ModelError(reason)
        self._wanted, self.version = attention, 0
        self._user = None if own else weakref.ref(model)
        self._print = None if own else fingerprint(model)
        self._wrapped = WrappedModel(model, own=own, pack=pack, attention=names, patch=patch)
        with self._wrapped.trying():
            self._build()
        self._reader = adapter_of(self.module)

    @property
    def module(self) -> Any:
        """What runs."""
        return self._wrapped.module

    @property
    def is_patched(self) -> bool:
        """Whether the caller's own modules run as they are; see Host."""
        return bool(self._wrapped.patch)

    @property
    def has_prefix(self) -> bool:
        """Whether the source stands in front of the tokens in their own slots."""
        return self._reader.has_prefix

    # --- making ready -------------------------------------------------------------------------------------------

    def _build(self) -> None:
        try:
            self._reader = adapter_of(self.module)
            trial = self._prepare_trial()
        except Exception as error:
            reason = f"does not run on a source of ours: {type(error).__name__}: {error}"
            raise ModelError(f"{type(self.module).__name__} {reason}: not supported in this version") from error
        self._wrapped.pack()
        self._given = [(config, config._attn_implementation_internal) for config in self._part_decoder_from_encoder()]
        self._settle(trial)

    def _prepare_trial(self) -> _Trial:
        """Run the model by itself, and see on the way whether what its head reads can be had."""
        num_embeddings = self.module.get_input_embeddings().weight.shape[0]
        count = trial_length(decoder_limit(self.module), 4)
        tokens = [num_embeddings * part // 6 for part in range(1, count + 1)]
        rows = [tokens, tokens[::-1]]
        head = self.module.get_output_embeddings()
        with self._wrapped.calling():
            states = self._reader.trial_states(2)
            with HeadHook(nn.Identity() if head is None else head) as tap:
                reference = self._reader.whole(states, torch.tensor(rows, device=self._wrapped.device)).float()
            opening = self._reader.open(states, tokens[0])
        self.reads_head = tap.states is not None and len(tap.states) >= 2 * len(tokens)
        self.vocab_size = reference.shape[-1]
        return _Trial(states, rows, reference, opening)

    def _part_decoder_from_encoder(self) -> list[Any]:
        """Give the encoder configs of its own, so that the decoder's can be changed. Returns the decoder's."""
        if self._wrapped.in_place or self.has_prefix:
            return []
        copies: dict[int, Any] = {}
        for module in self.module.get_encoder().modules():
            if hasattr(module, "config"):
                config = module.config
                module.config = copies.setdefault(id(config), copy.deepcopy(config))
        configs = [module.config for module in self._decoder.modules() if hasattr(module, "config")]
        return list({id(config): config for config in configs}.values())

    @property
    def _decoder(self) -> Any:
        return self.module.get_decoder()

    def _settle(self, trial: _Trial) -> None:
        """Take our attention where the decoder comes through it unharmed, else its own."""
        choices: tuple[Attention, ...] = ("ours", "own") if self._wanted == "auto" else (self._wanted,)
        self._why = ""
        for choice in choices:
            reason = self._obstacle(trial) if choice == "ours" else ""
            if not reason:
                self._adopt(choice, trial)
                reason = self._difference(trial)
            if not reason:
                return
            self._why = reason
        raise ModelError(f"{type(self.module).__name__} {self._why}: not supported in this version")

    def _adopt(self, attention: Attention, trial: _Trial) -> None:
        self.attention = attention
        self.layout = _layout(trial.opening.own, converts=attention == "ours")
        for config, before in self._given:
            config._attn_implementation_internal = before
        if attention == "ours":
            set_attention(self._decoder, ATTENTION_NAME)

    def _obstacle(self, trial: _Trial) -> str:
        """Return why the decoder cannot be given our attention, or ""."""
        if self.has_prefix:
            return "keeps its source among its tokens"
        if self._wrapped.in_place:
            return "runs on the caller's own module"
        self._adopt("ours", trial)
        first = FirstTokenAttention()
        try:
            with self._wrapped.calling(), attending(first):
                self._reader.open(trial.states, trial.tokens[0][0])
        except ModelError as error:
            return str(error)
        return "" if first.num_calls == 2 * len(self.layout) else "has a decoder that attends by other means"

    def _difference(self, trial: _Trial) -> str:
        """Feed both rows in two passes and compare with what the model says by itself. Returns what is wrong, or ""."""
        table, num_tokens = SourceTable(), len(trial.tokens[0])
        encoded = [
            table.make(Source(inputs={}), self._kept(visible(trial.opening.source, row, None)), 0) for row in (0, 1)
        ]
        pool = SlotPool(self.layout, self._num_prefixed(encoded[0]) + num_tokens, 2)
        slots = [Slot(pool, row, row) for row in (0, 1)]
        prefix = [self.lay_prefix(slot, each) for slot, each in zip(slots, encoded, strict=True)][0]
        half, found = max(1, num_tokens // 2), []
        for start in range(0, num_tokens, half):
            batch = EqualLengthBatch(list(zip(slots, encoded, strict=True)), prefix + start, half, spans_gaps=False)
            part = [row[start : start + half] for row in trial.tokens]
            hidden = [0] if self.reads_head and start else None
            try:
                rows, _ = self.run(batch, part, list(range(2 * half)), hidden, CrossBatchCache())
                found.append(rows.logits.view(2, half, self.vocab_size))
            except Exception as error:
                return f"does not run on a cache of ours: {type(error).__name__}: {error}"
        reference = trial.reference.to(found[0].device)
        apart = distance(torch.cat(found, 1), reference)
        if reference.isfinite().all() and apart > allowed_distance(self.module):
            return f"gives other results on a cache of ours ({apart:.2g} of their spread apart)"
        return ""

    # --- running ------------------------------------------------------------------------------------------------

    def encode(self, group: Sequence[Source]) -> list[KeysValues]:
        """Read sources whose inputs have the same shapes. Returns the keys and values of each."""
        inputs = stacked(group, self._wrapped.device, next(self.module.parameters()).dtype)
        with self._wrapped.calling(), self._attending(FirstTokenAttention()):
            opening = self._reader.open(self._reader.states(inputs), 0)
            mask = inputs.get("attention_mask")
            return [self._kept(visible(opening.source, row, mask)) for row in range(len(group))]

    def _kept(self, pairs: KeysValues) -> KeysValues:
        """Return a copy, so that what was computed together need not live together."""
        return [
            (key.to(layer.dtype, copy=True).contiguous(), value.to(layer.dtype, copy=True).contiguous())
            for (key, value), layer in zip(pairs, self.layout, strict=True)
        ]

    def _num_prefixed(self, encoded: EncodedSource) -> int:
        return encoded.length if self.has_prefix else 0

    def lay_prefix(self, slot: Slot, encoded: EncodedSource) -> int:
        """Write a source into the slot of a sequence that begins, if that is its place. Returns the positions taken."""
        count = self._num_prefixed(encoded)
        for layer, (key, value) in enumerate(zip(encoded.keys, encoded.values, strict=True)):
            slot.pool.keys[layer][slot.index, :, :count] = key[0, :, :count]
            slot.pool.values[layer][slot.index, :, :count] = value[0, :, :count]
        return count

    def run(
        self,
        batch: EqualLengthBatch,
        tokens: Sequence[Sequence[int]],
        asked: Sequence[int],
        hidden: Sequence[int] | None,
        stacks: CrossBatchCache,
    ) -> tuple[Rows, torch.Tensor]:
        """Run one pass.

        Args:
            bucket: the rows.
            tokens: [rows, width], the new tokens of each row.
            asked, hidden: indices into all new tokens, row by row, of which logits are wanted, and what the head reads.
            stacks: of the runtime, for a model that attends by itself.

        Returns:
            logits [asked, vocab] and hidden [hidden, head width] or None; and which rows were finite, bool [rows].
        """
        own = SelfCache(batch, len(self.layout), returns_all=self.attention == "own")
        cache = own if self.has_prefix else joint_cache(own, self._sources(batch, stacks))
        start = batch.start - self._num_prefixed(batch.encoded[0])
        keep = torch.tensor(asked, dtype=torch.int64, device=self._wrapped.device)
        with ExitStack() as stack:
            stack.enter_context(self._wrapped.calling())
            stack.enter_context(self._attending(EqualLengthAttention(own)))
            # A hook of the caller's on the head must see the shapes of transformers' `generate`.
            patched = bool(self._wrapped.patch)
            head = self.module.get_output_embeddings() if self.reads_head and (hidden or not patched) else None
            tap = None if head is None else stack.enter_context(HeadHook(head, None if patched else keep))
            ids = torch.tensor(tokens, device=self._wrapped.device)
            arguments = self._reader.arguments(ids, start)
            output = self.module(**arguments, past_key_values=cache, use_cache=True, return_dict=True)
            logits = output.logits.flatten(0, 1)
            if tap is None or patched:
                logits = logits[keep.to(logits.device)]
            states = tap.rows(hidden) if tap is not None and hidden is not None else None
        assert own.finite is not None, "the last layer was not reached"
        return Rows(_ordinary(logits), None if states is None else _ordinary(states)), own.finite

    def _sources(self, batch: EqualLengthBatch, stacks: CrossBatchCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if self.attention == "own":
            return stacks.layers_of(batch.encoded)
        first = batch.encoded[0]
        return [(key[:, :, :1], value[:, :, :1]) for key, value in zip(first.keys, first.values, strict=True)]

    def _attending(self, target: Attends) -> AbstractContextManager[None]:
        return attending(target) if self.attention == "ours" else nullcontext()

    # --- keeping up ---------------------------------------------------------------------------------------------

    def sync_weights(self) -> None:
        """See whether the user's model has changed since the last look, and take over what has.

        Raises:
            ModelError: it can no longer be served.
        """
        model = self._user() if self._user is not None else None
        if model is None:
            return
        if self._wrapped.patch:
            self.version += 1  # what hooks made of a source in one call is of no use in the next
            return
        now, before = fingerprint(model), self._print
        if now == before:
            return
        self._wrapped.sync_weights()
        self._print = now
        self.version += 1
        if now.has_other_parts(before):
            self._build()

    def refresh(self) -> None:
        """Take over the user's weights, also where they were written through `.data`."""
        self._wrapped.refresh()
        self.version += 1

    def describe(self) -> str:
        """Return how the model is run, in words."""
        attends = "reads keys and values where they lie" if self.attention == "ours" else "attends by itself"
        why = f" ({self._why})" if self._why else ""
        cached = f"{str(self.layout[0].dtype).removeprefix('torch.')} keys and values"
        return ", ".join([f"passes over equal lengths: the decoder {attends}{why}", *self._wrapped.describe(), cached])


def _layout(own: KeysValues, *, converts: bool) -> Layout:
    return tuple(
        LayerLayout(
            key.shape[1],
            key.shape[-1],
            value.shape[-1],
            cache_dtype(key.dtype, key.device.type) if converts else key.dtype,
            key.device,
        )
        for key, value in own
    )


def _ordinary(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows in float32, fit for use where gradients are recorded."""
    rows = rows.float()
    return rows.clone() if rows.is_inference() else rows


_MODELS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Seq2SeqModel]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def model_over(model: Any, pack: Pack = "auto", attention: Attention | Literal["auto"] = "auto") -> Seq2SeqModel:
    """Return what runs over a user's own model: the same one for each call, brought up to date.

    Raises:
        ModelError: the model cannot run so.
    """
    with _LOCK:
        found = _MODELS.get(model, {}).get((pack, attention))
        if found is None:
            found = Seq2SeqModel(model, own=False, pack=pack, attention=attention)
            # What runs on the model itself must not keep it alive.
            if found.module is not model:
                _MODELS.setdefault(model, {})[pack, attention] = found
        else:
            found.sync_weights()
        return found


def refresh_models(model: Any) -> None:
    """Take over the weights of a user's own model after they were written through `.data`."""
    with _LOCK:
        for found in _MODELS.get(model, {}).values():
            found.sync_weights()
            found.refresh()
