"""A transformers model made ready for flat passes over slots: attention set, linear layers packed, tried once.

Owns the module that runs, and keeps it in step with the user's own model where it shares that one's tensors. Knows
nothing of sequences: a pass is a row of tokens, their positions, and the rows whose logits are wanted.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.kv.attention import ATTENTION_NAME, attending
from unspool.runtimes.kv.attention_plan import AttentionPlan
from unspool.runtimes.kv.cache import ShapeProbeCache, SlotCache
from unspool.runtimes.kv.pool import Layout, SlotPool
from unspool.runtimes.kv.segments import Segment
from unspool.runtimes.model_info import (
    has_experts,
    length_limit,
    max_positions,
    num_hidden_layers,
    sliding_layers,
    slot_cache_obstacle,
    trial_length,
)
from unspool.runtimes.replay.replay import Replay
from unspool.runtimes.weights.batch_invariance import BatchInvariance, batch_invariance
from unspool.runtimes.weights.fuse_activation import fuse_activations, replace_activations
from unspool.runtimes.weights.packed_linear import Pack, PackReport, pack_rest, repack
from unspool.runtimes.wrap.agreement import allowed_distance, distance
from unspool.runtimes.wrap.hooks import HeadHook, LayerHook, LayerRow, LayerSearch
from unspool.runtimes.wrap.model_copy import (
    copy_tree,
    fingerprint,
    in_place_attention,
    input_device,
    is_dispatched,
    narrow_windows,
    set_attention,
)
from unspool.types import Rows

_TRIAL_WINDOW = 2
"""Of half the tokens of a trial, so that each way of applying a window shows."""


class DecoderModel:
    """A model that runs flat passes.

    Args:
        model: a loaded causal language model.
        own: whether the model is ours: it is then changed in place and its plain weights are freed. Otherwise a second
            module tree over the same tensors is made; a model that accelerate has spread over devices runs as it is,
            its attention set for the length of each pass.
        pack: see `pack_linears`.

    Attributes:
        layout: what each layer keeps of a token in the cache.
        vocab_size: width of the logits.
        version: counts how often the weights were found changed.
        batch_invariance: how a row keeps its bits in any company, or why it cannot.
        reads_head: whether what the head reads can be had.
        layers: the decoder layers, where the head can read what is between them; else None.

    Raises:
        ModelError: the model cannot run on the slot cache; the message says why.
    """

    layout: Layout
    vocab_size: int
    report: PackReport
    device: torch.device
    batch_invariance: BatchInvariance
    reads_head: bool
    layers: tuple[nn.Module, ...] | None

    def __init__(self, model: Any, *, own: bool, pack: Pack = "auto") -> None:
        self._source = None if own else weakref.ref(model)
        self._pack, self.version = pack, 0
        self._build(model)

    def _build(self, model: Any) -> None:
        if reason := slot_cache_obstacle(model):
            raise ModelError(reason)
        self.in_place = self._source is not None and is_dispatched(model)
        if self.in_place and model.training:
            raise ModelError("the model is in training mode and spread over devices: call `model.eval()` first")
        self._print = None if self._source is None else fingerprint(model)
        self.module = model.eval() if self._source is None else model if self.in_place else copy_tree(model)
        self.device = input_device(self.module)
        self._recorded: Replay | None = None
        self._keeps = _takes_logits_to_keep(self.module)
        with self._narrow_windows():
            reference, tokens = self._reference()
        if not self.in_place:
            set_attention(self.module, ATTENTION_NAME)
        self.layout = self._learn_layout()
        self.report = PackReport(0, 0, "the model is spread over devices")
        if not is_dispatched(model):
            self.report = pack_rest(self.module, keep=self._source is not None, pack=self._pack)
            if self.report.packed:
                replace_activations(self.module)
                with torch.inference_mode():
                    fuse_activations(self.module)
        with self._narrow_windows():
            self._compare(reference, tokens)
        on_cpu = all(layer.device.type == "cpu" for layer in self.layout)
        if not on_cpu:
            self.batch_invariance = BatchInvariance(obstacle="it is not on the CPU")
        elif has_experts(model):
            self.batch_invariance = BatchInvariance(obstacle="it routes rows to experts, which compute them together")
        else:
            self.batch_invariance = batch_invariance(self.module)
        # A pass with experts depends on which of them the tokens are routed to.
        if on_cpu and not is_dispatched(model) and not has_experts(model):
            self._recorded = Replay(len(self.layout), self.report.least_rows)

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
            cache: a SlotCache (or ShapeProbeCache) made for this pass.
            tokens, positions: of each row.
            asked: rows whose logits are wanted; may be none, and may repeat.
            hidden: rows of which is wanted what the head reads; None for none.
            inner: rows and layers of which is wanted what the head makes of them; None for none.
            invariant: whether a row's bits must not depend on its company: then nothing is replayed that was recorded
                while they might.

        Returns:
            logits [asked, vocab], hidden [hidden, width] or None, inner [inner, vocab] or None.
        """
        ids = torch.tensor([tokens], device=self.device)
        places = torch.tensor([positions], device=self.device)
        keep = torch.tensor(asked, dtype=torch.int64, device=self.device)
        recorded = self._recorded if hidden is None and not inner and not invariant else None
        with ExitStack() as stack:
            for context in (attending(cache), self._attention(), self._without_gradients()):
                stack.enter_context(context)
            with ExitStack() as taps:
                head = taps.enter_context(HeadHook(self._head, keep)) if hidden is not None else None
                layers = taps.enter_context(LayerHook(self.layers or (), inner)) if inner else None
                if head is not None:
                    logits = self._call(cache, ids, places)
                elif recorded is not None:
                    logits = recorded.run(self._logits, cache, ids, places, keep)
                else:
                    logits = self._logits(cache, ids, places, keep)
            states = None if head is None else head.rows(hidden or ())
            looks = None if inner is None else logits[:0]
            if layers is not None:
                looks = self._head(layers.states()[None])[0]
        return Rows(
            _ordinary(logits),
            None if states is None else _ordinary(states),
            None if looks is None else _ordinary(looks),
        )

    def plain(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Run one flat pass of which logits alone are wanted, over tensors that lie on the device already.

        Args:
            cache: what attends.
            ids, positions: [1, rows].
            keep: [asked], rows whose logits are wanted.

        Returns:
            [asked, vocab], in the model's own type.
        """
        with attending(cache), self._attention(), self._without_gradients():
            return self._logits(cache, ids, positions, keep)

    @property
    def _head(self) -> nn.Module:
        head: nn.Module | None = self.module.get_output_embeddings()
        assert head is not None, "a model without an output layer was asked what it reads"
        return head

    def _logits(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Run the model. Returns the logits of the kept rows."""
        if self._keeps:
            return self._call(cache, ids, positions, logits_to_keep=keep)
        logits = self._call(cache, ids, positions)
        return logits[keep.to(logits.device)]

    def _call(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor, **options: Any) -> torch.Tensor:
        options |= {"position_ids": positions, "past_key_values": cache, "use_cache": True, "return_dict": True}
        # No layer sees this mask; without one, some models warn of padding where a prompt ends with that token.
        output = self.module(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        logits: torch.Tensor = output.logits[0]
        return logits

    def _without_gradients(self) -> AbstractContextManager[Any]:
        # What a module of the caller's might keep must not be an inference tensor.
        return torch.no_grad() if self.in_place else torch.inference_mode()

    def _attention(self) -> AbstractContextManager[None]:
        return in_place_attention(self.module, ATTENTION_NAME) if self.in_place else nullcontext()

    def sync_weights(self) -> None:
        """See whether the user's model has changed since the last look, and take over what has.

        Raises:
            ModelError: it can no longer be served.
        """
        model = self._source() if self._source is not None else None
        if model is None:
            return
        now = fingerprint(model)
        if self._print == now:
            return
        if now.has_other_parts(self._print):
            self._build(model)
        else:
            self._print = now
            self._repack()
        self.version += 1

    def refresh(self) -> None:
        """Take over the user's weights, also where they were written through `.data`."""
        if self._source is not None:
            self._repack()
            self.version += 1

    def _repack(self) -> None:
        repack(self.module)
        if self._recorded is not None:
            self._recorded.forget()

    def describe(self) -> str:
        """Return how the model is run, in words."""
        dtype, cached = next(self.module.parameters()).dtype, self.layout[0].dtype
        parts = ["slot cache: transformers attention interface", _name(dtype)]
        if cached != dtype:
            parts.append(f"{_name(cached)} keys and values")
        parts.append(str(self.report))
        if products := self.batch_invariance.row_by_row:
            parts.append(f"row by row for batch_invariant requests: {len(products)} shapes of linear layers")
        if self.in_place:
            parts.append("on the caller's own module")
        if note := length_limit(self.module)[1]:
            parts.append(note)
        return ", ".join(parts)

    def _narrow_windows(self) -> AbstractContextManager[None]:
        return narrow_windows(self.module, _TRIAL_WINDOW)

    def _reference(self) -> tuple[torch.Tensor, list[int]]:
        """Return the model's own logits for a few tokens, and the tokens; see on the way what can be read of it."""
        vocab_size = self.module.get_input_embeddings().weight.shape[0]
        count = trial_length(max_positions(self.module), 4)
        tokens = [vocab_size * part // 6 for part in range(1, count + 1)]
        search = LayerSearch(self.module, num_hidden_layers(self.module))
        output_layer = self.module.get_output_embeddings()
        head = HeadHook(nn.Identity() if output_layer is None else output_layer)
        try:
            with torch.no_grad(), head, search:
                output = self.module(input_ids=torch.tensor([tokens], device=self.device), use_cache=False)
        except Exception as error:
            raise ModelError(f"{type(self.module).__name__} does not run: {type(error).__name__}: {error}") from error
        self.reads_head = head.states is not None and len(head.states) == len(tokens)
        self.layers = search.found(head.states.shape[-1]) if head.states is not None and self.reads_head else None
        return output.logits[0].float(), tokens

    def _learn_layout(self) -> Layout:
        """Run one token to see what each layer would cache."""
        notes = ShapeProbeCache()
        self._try(notes, [0], [0], [0])
        kind = type(self.module).__name__
        if not notes.layouts or sorted(notes.layouts) != list(range(len(notes.layouts))):
            raise ModelError(f"{kind} does not keep keys and values in every layer: not supported in this version")
        if sorted(notes.windows) != sorted(notes.layouts) or notes.num_calls != len(notes.layouts):
            raise ModelError(f"{kind} has layers that attend by other means: not supported in this version")
        if any(notes.windows[index] is None for index in sliding_layers(self.module) if index in notes.windows):
            raise ModelError(f"{kind} keeps the width of its sliding windows to itself: not supported in this version")
        return tuple(notes.layouts[index] for index in range(len(notes.layouts)))

    def _compare(self, reference: torch.Tensor, tokens: list[int]) -> None:
        """Feed the tokens in two parts, in company, and compare with what the model says by itself."""
        pool, half = SlotPool(self.layout, len(tokens), 2), max(1, len(tokens) // 2)
        first = [Segment(pool, 0, 0, half, 0), Segment(pool, 1, 0, len(tokens), half)]
        device = self.layout[0].device
        cache = SlotCache(AttentionPlan(first, half + len(tokens), "loop", device), len(self.layout))
        positions = [*range(half), *range(len(tokens))]
        found = self._try(cache, tokens[:half] + tokens[::-1], positions, list(range(half))).logits
        self.vocab_size = found.shape[-1]
        if half < len(tokens):
            found = torch.cat([found, self._second_half(pool, tokens, half)])
        reference = reference.to(found.device)
        apart = distance(found, reference)
        if reference.isfinite().all() and apart > allowed_distance(self.module):
            reason = f"gives other results on the slot cache ({apart:.2g} of their spread apart)"
            raise ModelError(f"{type(self.module).__name__} {reason}: not supported in this version")

    def _second_half(self, pool: SlotPool, tokens: list[int], half: int) -> torch.Tensor:
        """Feed the second half behind the first, as a pass with hidden states if there is one. --> [half, vocab]"""
        device = self.layout[0].device
        cache = SlotCache(AttentionPlan([Segment(pool, 0, half, half, 0)], half, "loop", device), len(self.layout))
        hidden = list(range(half)) if self.reads_head else None
        return self._try(cache, tokens[half:], list(range(half, len(tokens))), list(range(half)), hidden=hidden).logits

    def _try(
        self, cache: Any, tokens: list[int], positions: list[int], asked: list[int], hidden: list[int] | None = None
    ) -> Rows:
        try:
            return self.run(cache, tokens, positions, asked, hidden=hidden)
        except ModelError:
            raise
        except Exception as error:
            kind = type(self.module).__name__
            raise ModelError(f"{kind} does not run on the slot cache: {type(error).__name__}: {error}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _ordinary(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows in float32, fit for use where gradients are recorded."""
    rows = rows.float()
    return rows.clone() if rows.is_inference() else rows


def _takes_logits_to_keep(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


_DECODER_MODELS: weakref.WeakKeyDictionary[nn.Module, dict[Pack, DecoderModel]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def wrap_decoder(model: Any, pack: Pack = "auto") -> DecoderModel:
    """Return the shell over a user's own model: the same one for each call, brought up to date.

    Raises:
        ModelError: the model cannot run on the slot cache.
    """
    with _LOCK:
        decoder_model = _DECODER_MODELS.get(model, {}).get(pack)
        if decoder_model is None:
            decoder_model = DecoderModel(model, own=False, pack=pack)
            # A borrowed shell holds the model itself, which must not keep itself alive.
            if not decoder_model.in_place:
                _DECODER_MODELS.setdefault(model, {})[pack] = decoder_model
        else:
            decoder_model.sync_weights()
        return decoder_model


def refresh(model: Any) -> None:
    """Take over the weights of a user's own model after they were written through `.data`.

    Every other change is seen by itself. A model that has never been used here is no error.
    """
    from unspool.runtimes.seq2seq.model import refresh_models
    from unspool.runtimes.wrap.wrapped import refresh_wrapped

    with _LOCK:
        for decoder_model in _DECODER_MODELS.get(model, {}).values():
            decoder_model.sync_weights()
            decoder_model.refresh()
    refresh_wrapped(model)
    refresh_models(model)
