"""The choice of the backend: the fastest runtime that gives the model's own logits.

Each runtime probes the model with a few tokens when it is made, and the first that passes runs the model.
`info.backend` names it, and says why no faster one runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unspool.errors import ModelError
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv.limits import Limit
from unspool.runtimes.model_info import GrowingRope, generation_obstacle, growing_rope
from unspool.runtimes.seq2seq.source_info import has_prefix_image
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.model_copy import AttentionNames, attention_names, restore_attention
from unspool.runtimes.wrap.patches import find_patch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unspool.protocols import Runtime


def runtime_of(
    model: Any,
    *,
    owns_model: bool,
    pack: Pack = "auto",
    max_cache_tokens: Limit = None,
    max_sequences: Limit = None,
    attention: AttentionNames | None = None,
    patch: str | None = None,
) -> Runtime:
    """Return a runtime over a loaded transformers model: slot cache, encoder-decoder, own cache, or no cache.

    A model with hooks, adapters, or other patches (see `find_patch`) runs on its own modules, as in transformers'
    `generate`.

    Args:
        model: a causal language model or an encoder-decoder.
        owns_model: True if the model is ours to change. Otherwise it stays as it is, and the runtime follows its
            training steps whenever a sequence begins.
        pack: whether to pack linear layers on a CPU; "auto" packs if the CPU supports it and memory allows it.
        max_cache_tokens: limit on tokens over all live sequences, see `limits`.
        max_sequences: limit on live sequences.
        attention: attention implementations of the model's configs; None for the current ones.
        patch: the result of `find_patch`; None to look for a patch.

    Raises:
        ModelError: if no runtime can run the model; the message says why for each.
    """
    if reason := generation_obstacle(model):
        raise ModelError(reason)
    options: dict[str, Any] = {
        "owns_model": owns_model,
        "pack": pack,
        "max_cache_tokens": max_cache_tokens,
        "max_sequences": max_sequences,
    }
    patch = find_patch(model) if patch is None else patch
    if getattr(model.config, "is_encoder_decoder", False) or has_prefix_image(model):
        from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime

        own_names = (attention or attention_names(model)) if owns_model and patch else None
        runtime: Runtime = Seq2SeqRuntime(model, **options, names=own_names, patch=patch)
        return runtime
    names = attention_names(model) if attention is None else attention
    runtime = _patched(model, options, names, patch) if patch else _fastest(model, options, names)
    rope = growing_rope(model)
    if rope is None or rope.longest <= rope.original:
        return runtime
    from unspool.runtimes.generic.long_rope import LongRopeRuntime

    return LongRopeRuntime(
        runtime,
        _beyond(model, rope, owns_model=owns_model, attention=names, patch=patch),
        original=rope.original,
        max_length=rope.longest,
        max_cache_tokens=max_cache_tokens,
        max_sequences=max_sequences,
    )


def _fastest(model: Any, options: dict[str, Any], attention: AttentionNames) -> Runtime:
    """Return the fastest runtime that can run the model."""
    return _first((DecoderRuntime, _generic, _recompute), model, options, attention)


def _patched(model: Any, options: dict[str, Any], attention: AttentionNames, patch: str) -> Runtime:
    """Return a runtime that runs the model's own modules, with the patches of the moment."""
    from unspool.runtimes.wrap.wrapped import WrappedModel

    wrapped = WrappedModel(
        model, owns_model=options["owns_model"], attention=attention if options["owns_model"] else None, patch=patch
    )
    return _first((_generic, _recompute), model, {**options, "wrapped": wrapped}, attention)


def _first(
    makers: Sequence[Callable[..., Runtime]], model: Any, options: dict[str, Any], attention: AttentionNames
) -> Runtime:
    """Return the first runtime that can be made; the next ones get the reasons of those that failed."""
    reasons: list[str] = []
    for make in makers:
        try:
            return make(model, **options, **({"reason": "; ".join(reasons)} if reasons else {}))
        except ModelError as error:
            reasons.append(str(error))
            if options["owns_model"]:
                restore_attention(attention)  # the slot cache can have changed it
    raise ModelError(f"{type(model).__name__} cannot be run here: {'; '.join(reasons)}")


def _generic(model: Any, **options: Any) -> Runtime:
    # Imported late: most models need the slot cache only.
    from unspool.runtimes.generic.runtime import GenericRuntime

    return GenericRuntime(model, **options)


def _recompute(model: Any, **options: Any) -> Runtime:
    return _generic(model, use_cache=False, **options)


def _beyond(model: Any, rope: GrowingRope, *, owns_model: bool, attention: AttentionNames, patch: str) -> Runtime:
    """Return the runtime for sequences that are longer than the rotary embedding's original length."""
    from unspool.runtimes.wrap.wrapped import WrappedModel

    # A model of ours has its packed layers already; beside a user's own weights one packed copy is enough.
    wrapped = WrappedModel(
        model, owns_model=owns_model, pack=False, attention=attention if owns_model else None, patch=patch
    )
    reason = "the angles of all tokens change with each one"
    if rope.kind == "longrope":
        try:
            return _generic(model, owns_model=owns_model, wrapped=wrapped)
        except ModelError as error:
            reason = str(error)
    return _recompute(model, owns_model=owns_model, wrapped=wrapped, row_by_row=True, reason=reason)
