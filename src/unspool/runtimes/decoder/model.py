"""A causal language model on the slot cache: a flat pass over rows of tokens, and the probe that allows it.

Owns how the wrapped model is called. Knows no sequences: a pass is tokens, their positions, and the rows to return.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from unspool.errors import ModelError
from unspool.runtimes.decoder.probe import compare, read_opening
from unspool.runtimes.decoder.replayed_pass import FlatPass
from unspool.runtimes.kv.attention import ATTENTION_NAME, attending
from unspool.runtimes.kv.pool import Layout
from unspool.runtimes.model_info import (
    cache_argument,
    forward_parameters,
    has_experts,
    length_limit,
    max_positions,
    probe_length,
    slot_cache_obstacle,
    text_config,
)
from unspool.runtimes.replay.replay import Replay
from unspool.runtimes.weights.batch_invariance import BatchInvariance, batch_invariance
from unspool.runtimes.weights.invariant_calls import InvariantCalls
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.call_state import usable_rows
from unspool.runtimes.wrap.hooks import HeadHook, LayerHook, LayerRow, output_layer
from unspool.runtimes.wrap.model_copy import (
    attention_names,
    attention_of,
    copy_bare,
    is_dispatched,
    narrow_windows,
    set_attention_names,
)
from unspool.runtimes.wrap.probe import failure, observe, probe_tokens
from unspool.runtimes.wrap.prompt_batch import PromptBatch
from unspool.runtimes.wrap.prompt_reader import PromptReader
from unspool.runtimes.wrap.wrapped import BackendModel, WrappedModel
from unspool.types import Feed, Rows

_PROBE_LENGTH, _PROBE_WINDOW = 4, 2
"""Tokens of a probe, and the widest sliding window in it: half of the tokens, so that a wrong window is found."""


class DecoderModel(BackendModel):
    """A model that runs flat passes on the slot cache.

    Args:
        model: a loaded causal language model.
        owns_model: True if the model is ours to change; see `WrappedModel`. A model that accelerate spread over devices
            runs in place; any other model must allow a copy.
        pack: see `pack_linears`.

    Attributes:
        layout: shape and dtype of each layer's keys and values.
        vocab_size: width of the logits.
        batch_invariance: how a row keeps its bits beside any other rows, or why it cannot.
        reads_head: True if the input of the head can be read.
        layers: the decoder layers, if the head can read the states between them; else None.

    Raises:
        ModelError: if the model cannot run on the slot cache; the message says why.
    """

    layout: Layout
    vocab_size: int
    batch_invariance: BatchInvariance
    reads_head: bool
    layers: tuple[nn.Module, ...] | None

    def __init__(self, model: Any, *, owns_model: bool, pack: Pack = "auto") -> None:
        if reason := slot_cache_obstacle(model):
            raise ModelError(reason)
        self._prompt_lock = threading.Lock()
        super().__init__(WrappedModel(model, owns_model=owns_model, pack=pack, exclusive=False))

    def _configure(self) -> None:
        """Prepare the wrapped module: learn the cache layout, pack, and compare with the model's own logits."""
        wrapped, spread = self._wrapped, is_dispatched(self.module)
        if reason := slot_cache_obstacle(self.module) or ("" if spread else wrapped.reason):
            raise ModelError(reason)
        self._recorded: Replay | None = None
        self._recorded_invariant: Replay | None = None
        self._keeps = "logits_to_keep" in forward_parameters(self.module)
        self._cache_argument = cache_argument(self.module)
        with narrow_windows(self.module, _PROBE_WINDOW):
            reference, tokens = self._reference()
            self._own_attention = attention_names(self.module)
            self._twin: PromptReader | None = None
            wrapped.set_attention(ATTENTION_NAME)
            opening = read_opening(self.module, self._try, tokens[: max(1, len(tokens) // 2)])
            self.layout = opening.layout
            wrapped.pack()
            self.vocab_size = compare(self.module, opening, self._try, reference, tokens, self.reads_head)
        on_cpu = all(layer.device.type == "cpu" for layer in self.layout)
        self.batch_invariance = self._invariance(on_cpu=on_cpu)
        # The operators of a pass with experts depend on the routing of its tokens.
        if on_cpu and not spread and not has_experts(text_config(self.module)):
            self._recorded = Replay(version=lambda: wrapped.version)
            self._recorded_invariant = Replay(self._invariant_calls(), version=lambda: wrapped.version)
        self._builds = wrapped.builds

    def _invariance(self, *, on_cpu: bool) -> BatchInvariance:
        if not on_cpu:
            return BatchInvariance(obstacle="it is not on the CPU")
        if has_experts(text_config(self.module)):
            return BatchInvariance(obstacle="it routes rows to experts, which compute them together")
        return batch_invariance(self.module)

    def _invariant_calls(self) -> InvariantCalls:
        return InvariantCalls(row_by_row=self.batch_invariance.row_by_row)

    def run(
        self,
        cache: Any,
        tokens: Sequence[int],
        positions: Sequence[int],
        asked: Sequence[int],
        *,
        hidden: Sequence[int] | None = None,
        inner: Sequence[LayerRow] | None = None,
        invariant: bool = False,
    ) -> Rows:
        """Run one flat pass.

        Args:
            cache: a SlotCache (or FirstTokensCache) made for this pass.
            tokens, positions: token id and position of each row.
            asked: rows that need logits, in this order; can be empty, and can repeat.
            hidden: rows that need the input of the head; None for none.
            inner: rows and layers that need logits; None for none.
            invariant: True if the bits of a row must not depend on other rows.

        Returns:
            logits [asked, vocab], hidden [hidden, width] or None, inner [inner, vocab] or None.
        """
        ids = torch.tensor([tokens], device=self.device)
        places = torch.tensor([positions], device=self.device)
        keep = torch.tensor(asked, dtype=torch.int64, device=self.device)
        recorded = self._recorded_invariant if invariant else self._recorded
        states = between = None
        with attending(cache), self._wrapped.calling():
            if recorded is not None and hidden is None and not inner and 1 <= len(asked) <= len(tokens):
                logits = recorded.run(FlatPass(self._logits, len(self.layout), cache, ids, places, keep))
                between = None if inner is None else logits[:0]
            else:
                with self._invariant_calls() if invariant else nullcontext():
                    logits, states, between = self._observed(cache, ids, places, keep, hidden, inner)
        if states is not None:
            states = usable_rows(states)
        return Rows(usable_rows(logits), states, None if between is None else usable_rows(between))

    def _observed(
        self,
        cache: Any,
        ids: torch.Tensor,
        positions: torch.Tensor,
        keep: torch.Tensor,
        hidden: Sequence[int] | None,
        inner: Sequence[LayerRow] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Run the module, and read the states that `run` returns."""
        with ExitStack() as hooks:
            head = None if hidden is None else hooks.enter_context(HeadHook(output_layer(self.module), keep))
            layers = hooks.enter_context(LayerHook(self.layers or (), inner)) if inner else None
            logits = self._logits(cache, ids, positions, keep) if head is None else self._call(cache, ids, positions)
        states = None if head is None else head.rows(hidden or ())
        between = None if inner is None else logits[:0]
        if layers is not None:
            between = output_layer(self.module)(layers.states()[None])[0]
        return logits, states, between

    def plain(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Run one flat pass for logits only, over tensors on the device.

        Args:
            cache: the attention target.
            ids, positions: int64 [1, rows].
            keep: int64 [asked], rows that need logits.

        Returns:
            [asked, vocab], in the model's own dtype.
        """
        with attending(cache), self._wrapped.calling():
            return self._logits(cache, ids, positions, keep)

    def read(self, inputs: Mapping[str, Any], feeds: Sequence[Feed]) -> PromptBatch:
        """Read a batch of prompts by the model's own forward and attention; see `PromptReader.read`.

        The cache of the result holds keys and values of all tokens in every layer, sliding windows included.
        """
        with self._wrapped.calling(), self._prompt_lock:
            if self.in_place:
                with attention_of(self._own_attention):
                    return self._reader(self.module).read(inputs, feeds, DynamicCache())
            if self._twin is None:
                # A module tree of its own: its attention is not that of the slots, and it remembers positions.
                module = copy_bare(self.module)
                set_attention_names(module, [name for _, name in self._own_attention])
                self._twin = self._reader(module)
            return self._twin.read(inputs, feeds, DynamicCache())

    def _reader(self, module: Any) -> PromptReader:
        layers = self.layers
        if layers is not None and module is not self.module:
            names = {id(each): name for name, each in self.module.named_modules()}
            layers = tuple(module.get_submodule(names[id(layer)]) for layer in layers)
        return PromptReader(module, layers, reads_head=self.reads_head, narrows=True)

    def _logits(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Return the logits of the kept rows."""
        if self._keeps:
            return self._call(cache, ids, positions, logits_to_keep=keep)
        logits = self._call(cache, ids, positions)
        return logits[keep.to(logits.device)]

    def _call(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor, **options: Any) -> torch.Tensor:
        options |= {"position_ids": positions, self._cache_argument: cache, "use_cache": True, "return_dict": True}
        # No layer uses this mask. Without it, some models warn of padding if a prompt ends with the pad token.
        output = self.module(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        logits: torch.Tensor = output.logits[0]
        return logits

    def describe(self) -> str:
        """Return how the model runs, in words."""
        cached = self.layout[0].dtype
        parts = ["slot cache: transformers attention interface", *self._wrapped.describe()]
        if cached != next(self.module.parameters()).dtype:
            parts.append(f"{str(cached).removeprefix('torch.')} keys and values")
        if note := length_limit(self.module)[1]:
            parts.append(note)
        return ", ".join(parts)

    # --- probe --------------------------------------------------------------------------------------------------

    def _reference(self) -> tuple[torch.Tensor, list[int]]:
        """Return the model's own logits of a few tokens, and the tokens; set the states that can be read."""
        tokens = probe_tokens(self.module, probe_length(max_positions(self.module), _PROBE_LENGTH), 6)
        ids = torch.tensor([tokens], device=self.device)
        try:
            with self._wrapped.calling() as module:
                output, readable = observe(module, len(tokens), lambda: module(input_ids=ids, use_cache=False))
        except Exception as error:
            raise ModelError(failure(self.module, "", error)) from error
        self.reads_head, self.layers = readable.reads_head, readable.layers
        return output.logits[0].float(), tokens

    def _try(
        self, cache: Any, tokens: list[int], positions: list[int], asked: list[int], hidden: list[int] | None = None
    ) -> Rows:
        try:
            return self.run(cache, tokens, positions, asked, hidden=hidden)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(failure(self.module, "the slot cache", error)) from error
