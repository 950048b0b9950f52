"""Calls of a causal model as in transformers' `generate`: through its own `prepare_inputs_for_generation`.

Owns the arguments of a call and the tensors of its result. A call is a batch of sequences of one length; nothing is
padded. Knows no sequences beyond a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache

from unspool.runtimes.generic.cache_pytree import Tree
from unspool.runtimes.model_info import cache_names, forward_parameters, text_config
from unspool.runtimes.wrap.hooks import HeadHook, LayerHook, LayerRow, output_layer
from unspool.runtimes.wrap.probe import Readable, observe
from unspool.runtimes.wrap.wrapped import WrappedModel


class ModelOutput(NamedTuple):
    """The result of a call, on the model's device.

    logits: [kept rows, vocab] float32. hidden: [batch, new tokens, width] float32, the input of the head, or None if it
    cannot be read. inner: [places, vocab] float32 or None. tree: the cache, or None.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None
    inner: torch.Tensor | None
    tree: Tree | None


class CausalModel:
    """Calls a wrapped model.

    Attributes:
        readable: the states that can be read; none before `learn`.
        cache_name: the argument and result that carries the cache; None without a cache.
    """

    def __init__(self, wrapped: WrappedModel) -> None:
        self.wrapped, self.readable = wrapped, Readable()
        self._accepted = forward_parameters(wrapped.module)
        self.cache_name = next((name for name in cache_names() if name in self._accepted), None)

    @property
    def num_embeddings(self) -> int:
        """Tokens that the model can read."""
        return int(self.wrapped.module.get_input_embeddings().weight.shape[0])

    def next_row(self, ids: torch.Tensor) -> ModelOutput:
        """Return the logits after each sequence's last token, as in the first step of transformers' `generate`.

        Args:
            ids: [batch, length], the whole sequences.

        Returns:
            logits [batch, vocab], hidden [batch, 1, width]; no cache.
        """
        with self.wrapped.calling() as module, ExitStack() as hooks:
            head = hooks.enter_context(HeadHook(output_layer(module))) if self.readable.reads_last else None
            inputs = self._inputs(ids, None, ids.shape[1], use_cache=False)
            if self.wrapped.patch and "logits_to_keep" in inputs:
                inputs["logits_to_keep"] = 1
            output = module(**inputs, return_dict=True)
            hidden = None
            if head is not None and head.states is not None:
                hidden = head.states.reshape(ids.shape[0], -1, head.states.shape[-1])[:, -1:].float()
            return ModelOutput(output.logits[:, -1].float(), hidden, None, None)

    def run(
        self,
        ids: torch.Tensor,
        tree: Tree | None,
        num_new: int,
        keep: Sequence[int],
        *,
        hidden: bool = True,
        inner: Sequence[LayerRow] = (),
        remembers: bool = True,
        later: Mapping[str, Any] | None = None,
    ) -> ModelOutput:
        """Read the last `num_new` tokens of each sequence.

        Args:
            ids: [batch, length], the whole sequences.
            tree: the cache of the tokens before, which the call can change; None for an empty one.
            keep: rows with logits to return, at least one; row n * num_new is the first new token of sequence n.
            hidden: True to return the input of the head, if it can be read.
            inner: rows and layers with logits to return too; only for a batch of one.
            remembers: True to return the cache.
            later: arguments of the call after a prompt with embeddings, images or audio; None for a plain prompt.
        """
        assert keep and (not inner or ids.shape[0] == 1), "a call keeps a row, and inner rows of one sequence only"
        kept = torch.tensor(keep, device=self.wrapped.device)
        with self.wrapped.calling() as module:
            inputs = self._inputs(ids, tree, num_new, use_cache=remembers, later=later)
            narrows = self._narrows(inputs, keep, ids.shape[0], num_new, reads=hidden or bool(inner))
            with ExitStack() as hooks:
                # The caller's hook on the head must see the shapes of transformers' `generate`.
                through = None if self.wrapped.patch else kept
                hooks_head = self.readable.reads_head and (hidden or not self.wrapped.patch)
                head = hooks.enter_context(HeadHook(output_layer(module), through)) if hooks_head else None
                layers = hooks.enter_context(LayerHook(self.readable.layers or (), inner)) if inner else None
                output = module(**inputs, return_dict=True)
            logits = output.logits.reshape(-1, output.logits.shape[-1])
            if not narrows and (head is None or self.wrapped.patch):
                logits = logits[kept.to(logits.device)]
            shown = None
            if hidden and head is not None and head.states is not None:
                shown = head.states.reshape(ids.shape[0], num_new, -1).float()
            between = None if layers is None else output_layer(module)(layers.states()[None])[0].float()
            memory = getattr(output, self.cache_name, None) if remembers and self.cache_name else None
            return ModelOutput(logits.float(), shown, between, memory)

    def step(self, ids: torch.Tensor, tree: Tree) -> tuple[torch.Tensor, Tree]:
        """Read the last token of each sequence, inside `calling`: a plain call, which a tracer can record.

        Args:
            ids: [batch, length], the whole sequences.
            tree: the cache of the tokens before, which the call can change.

        Returns:
            Logits [batch, vocab], in the model's own dtype, and the cache.
        """
        inputs = self._inputs(ids, tree, 1, use_cache=True)
        output = self.wrapped.module(**inputs, return_dict=True)
        return output.logits[:, -1], getattr(output, self.cache_name or "", None)

    def _narrows(self, inputs: dict[str, Any], keep: Sequence[int], batch: int, num_new: int, *, reads: bool) -> bool:
        """Make a patched model compute only the last row of each sequence, as `generate` does; return True if done.

        reads: True if the call must return more than logits.
        """
        lasts = range(num_new - 1, batch * num_new, num_new)
        if not self.wrapped.patch or reads or "logits_to_keep" not in inputs or list(keep) != list(lasts):
            return False
        inputs["logits_to_keep"] = 1
        return True

    def learn(self, ids: torch.Tensor) -> torch.Tensor:
        """Find the states that can be read in a call without a cache.

        Args:
            ids: [batch, tokens].

        Returns:
            Logits [batch, tokens, vocab] float32; fewer per sequence if the model returns fewer.
        """
        with self.wrapped.calling() as module:
            inputs = self._inputs(ids, None, ids.shape[1], use_cache=False)
            output, self.readable = observe(module, ids.numel(), lambda: module(**inputs, return_dict=True))
            logits: torch.Tensor = output.logits
            return logits.float()

    def whole_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return all logits of a call on [1, tokens] without a cache. The last row is that of the next token.

        Returns:
            [tokens, vocab] float32; fewer rows if the model returns fewer.
        """
        with self.wrapped.calling() as module:
            inputs = self._inputs(ids, None, ids.shape[1], use_cache=False)
            logits: torch.Tensor = module(**inputs, return_dict=True).logits
            return logits[0].float()

    def _inputs(
        self,
        ids: torch.Tensor,
        tree: Tree | None,
        num_new: int,
        *,
        use_cache: bool,
        later: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of a forward, as transformers' `generate` makes them without padding."""
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "use_cache": use_cache}
        if "position_ids" in self._accepted:
            options["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
        if "use_mems" in self._accepted:
            options["use_mems"] = False
        options |= later or {}
        if use_cache and self.cache_name is not None:
            options[self.cache_name] = self._empty() if tree is None else tree
        inputs: dict[str, Any] = self.wrapped.module.prepare_inputs_for_generation(
            ids,
            next_sequence_length=None if tree is None else num_new,
            is_first_iteration=tree is None,
            **options,
        )
        if "logits_to_keep" in self._accepted:
            inputs["logits_to_keep"] = 0  # all: a hook on the head selects the rows
        for name in ("next_sequence_length", "is_first_iteration", "attention_mask"):
            if name not in self._accepted:
                inputs.pop(name, None)
        return inputs

    def _empty(self) -> Tree | None:
        """Return the cache that transformers' `generate` starts with; None if the model makes its own."""
        module = self.wrapped.module
        if self.cache_name == "state" or not getattr(module, "_supports_default_dynamic_cache", lambda: True)():
            return None
        return DynamicCache(config=text_config(module))
