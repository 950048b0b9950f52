"""The wrapped model of the encoder-decoder backend: packs it, chooses the decoder's attention, and probes the result.

Knows no sequences. `Seq2SeqForward` runs the passes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from unspool.errors import ModelError
from unspool.kernels.attention import attends
from unspool.runtimes.kv.attention import ATTENTION_NAME
from unspool.runtimes.kv.pool import Layout
from unspool.runtimes.model_info import has_experts, text_config
from unspool.runtimes.replay.replay import Replay
from unspool.runtimes.seq2seq.encoder_cache import EncoderAdapter, adapter_of
from unspool.runtimes.seq2seq.forward import Attention, Seq2SeqForward
from unspool.runtimes.seq2seq.probe import Probe
from unspool.runtimes.seq2seq.source_info import decoder_limit, source_obstacle
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.model_copy import (
    AttentionNames,
    restore_attention,
    separate_encoder_attention,
    set_attention,
)
from unspool.runtimes.wrap.probe import failure
from unspool.runtimes.wrap.wrapped import BackendModel, WrappedModel


class Seq2SeqModel(BackendModel):
    """A model that encodes sources and runs decoder passes over rows of equal length.

    Args:
        model: a loaded encoder-decoder, or GIT.
        owns_model: True if the model is ours to change; see `WrappedModel`.
        pack: see `pack_linears`.
        attention: "ours" reads the decoder's keys and values in their slots; "own" is the model's, which needs those of
            all rows in one tensor; "auto" is "ours" if the decoder supports it.
        names, patch: `attention` and `patch` of the `WrappedModel`.

    Attributes:
        forward: runs passes; another object after the model's modules have changed.
        config: of the decoder; see `text_config`.
        vocab_size: width of the logits.

    Raises:
        ModelError: if the model cannot run so; the message says why.
    """

    forward: Seq2SeqForward
    config: Any
    vocab_size: int

    def __init__(
        self,
        model: Any,
        *,
        owns_model: bool,
        pack: Pack = "auto",
        attention: Attention | Literal["auto"] = "auto",
        names: AttentionNames | None = None,
        patch: str = "",
    ) -> None:
        if reason := source_obstacle(model):
            raise ModelError(reason)
        self._requested: Attention | Literal["auto"] = attention
        super().__init__(WrappedModel(model, owns_model=owns_model, pack=pack, attention=names, patch=patch))

    @property
    def is_patched(self) -> bool:
        """True if the caller's own module runs because of a patch; see `find_patch`."""
        return bool(self._wrapped.patch)

    @property
    def has_prefix(self) -> bool:
        """True if the source precedes the tokens in their own slots; False for cross-attention."""
        return self.forward.reader.has_prefix

    @property
    def layout(self) -> Layout:
        """Shape and dtype of each decoder layer's keys and values."""
        return self.forward.layout

    def describe(self) -> str:
        """Return how the model runs, in words."""
        is_ours = self.forward.attention == "ours"
        attends = "reads keys and values in their slots" if is_ours else "uses its own attention"
        why = f" ({self._why})" if self._why else ""
        cached = f"{str(self.layout[0].dtype).removeprefix('torch.')} keys and values"
        return ", ".join([f"passes over equal lengths: the decoder {attends}{why}", *self._wrapped.describe(), cached])

    def _configure(self) -> None:
        """Prepare the wrapped module: pack, choose the attention, and compare with the model's own logits."""
        wrapped = self._wrapped
        with wrapped.probing():
            self._build()
        # The probe can run on a copy; the adapter must call the module that stays.
        on_cpu = all(layer.device.type == "cpu" for layer in self.layout)
        # The operators of a pass with experts depend on the routing of its tokens.
        can_replay = self.forward.attention == "ours" and on_cpu and not has_experts(self.config)
        replay = Replay(version=lambda: wrapped.version) if can_replay else None
        projections = None
        if self._projections is not None:
            find = self.module.get_decoder().get_submodule
            projections = [(find(key), find(value)) for key, value in self._projections]
        self.forward = replace(self.forward, reader=adapter_of(self.module), replay=replay, projections=projections)
        self._builds = wrapped.builds

    def _build(self) -> None:
        try:
            reader = adapter_of(self.module)
            self.config = text_config(self.module)
            probe = Probe.of(self._wrapped, reader, decoder_limit(self.config))
        except Exception as error:
            reason = failure(self.module, "a probe input", error)
            raise ModelError(f"{reason}: not supported in this version") from error
        self._wrapped.pack()
        self.vocab_size, self._projections = probe.reference.shape[-1], probe.projections
        self._can_change = not self._wrapped.in_place and not reader.has_prefix
        self._attention_before = separate_encoder_attention(self.module) if self._can_change else []
        self._choose_attention(reader, probe)

    def _choose_attention(self, reader: EncoderAdapter, probe: Probe) -> None:
        """Use our attention if the probe passes with it, else the model's own.

        Raises:
            ModelError: if the probe fails with all allowed attentions.
        """
        choices: tuple[Attention, ...] = ("ours", "own") if self._requested == "auto" else (self._requested,)
        self._why = ""
        for choice in choices:
            self._set_attention(choice)
            reason = self._obstacle(reader) if choice == "ours" else ""
            layout, dtype = probe.layout(choice), next(self.module.parameters()).dtype
            self.forward = Seq2SeqForward(
                wrapped=self._wrapped,
                reader=reader,
                layout=layout,
                attention=choice,
                uses_kernel=all(layer.device.type == "cpu" and attends(dtype, layer.dtype) for layer in layout),
                reads_head=probe.reads_head,
            )
            if not (reason := reason or probe.difference(self.forward)):
                return
            self._why = reason
        raise ModelError(f"{type(self.module).__name__} {self._why}: not supported in this version")

    def _obstacle(self, reader: EncoderAdapter) -> str:
        """Return why the decoder cannot use our attention, or ""."""
        if reader.has_prefix:
            return "keeps its source among its tokens"
        if self._wrapped.in_place:
            return "runs on the caller's own module"
        return ""

    def _set_attention(self, attention: Attention) -> None:
        restore_attention(self._attention_before)
        if attention == "ours" and self._can_change:
            set_attention(self.module.get_decoder(), ATTENTION_NAME)
