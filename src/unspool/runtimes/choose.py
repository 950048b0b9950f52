"""runtime_of(): the fastest way to run a transformers model that gives what the model says by itself.

Nobody chooses: each way tries itself on a few tokens when it is made, and the first that passes runs the model.
`info.backend` says which one, and why not a faster one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from unspool.errors import ModelError
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv.limits import Limit
from unspool.runtimes.model_info import GrowingRope, growing_rope, slot_cache_obstacle
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
    own: bool,
    pack: Pack = "auto",
    max_cache_tokens: Limit = None,
    max_sequences: Limit = None,
    attention: AttentionNames | None = None,
) -> Runtime:
    """Return a runtime over a loaded transformers model: slot cache, encoder-decoder, general path or recomputation.

    A model with hooks, adapters, or other patches (see `find_patch`) runs on its own modules, as in transformers'
    `generate`.

    Args:
        model: a causal language model or an encoder-decoder.
        own: whether the model is ours to change. Where False it stays untouched, and training steps in between are
            seen when a sequence is opened.
        pack: whether linear layers are packed on a CPU; "auto" packs where it can be done and memory allows it.
        max_cache_tokens: limit on tokens over all live sequences, see `limits`.
        max_sequences: limit on live sequences.
        attention: attention implementations of the model's configs; None for those that they have now.

    Raises:
        ModelError: no path can run the model; the message says why for each.
    """
    _check(model)
    options: dict[str, Any] = {
        "own": own,
        "pack": pack,
        "max_cache_tokens": max_cache_tokens,
        "max_sequences": max_sequences,
    }
    names = attention_names(model) if attention is None else attention
    patch = find_patch(model)
    if getattr(model.config, "is_encoder_decoder", False) or has_prefix_image(model):
        from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime

        runtime: Runtime = Seq2SeqRuntime(model, **options, names=names if own and patch else None, patch=patch)
        return runtime
    runtime = _patched(model, options, names, patch) if patch else _fastest(model, options, names)
    rope = growing_rope(model)
    if rope is None or rope.longest <= rope.original:
        return runtime
    from unspool.runtimes.generic.long_rope import LongRopeRuntime

    return LongRopeRuntime(
        runtime,
        _beyond(model, rope, own=own, attention=names, patch=patch),
        original=rope.original,
        max_length=rope.longest,
        max_cache_tokens=max_cache_tokens,
        max_sequences=max_sequences,
    )


def _check(model: Any) -> None:
    """Refuse what is no generating model of transformers at all."""
    name = type(model).__name__
    if not isinstance(getattr(model, "base_model", model), PreTrainedModel):
        raise ModelError(f"{name} is not a transformers model")
    if not getattr(model, "can_generate", lambda: False)():
        raise ModelError(f"{name} has no language-model head to generate with")


def _fastest(model: Any, options: dict[str, Any], attention: AttentionNames) -> Runtime:
    """Return the first path that can run the model, from the fastest to the plainest."""
    return _first((_slots, _general, _recompute), model, options, attention)


def _patched(model: Any, options: dict[str, Any], attention: AttentionNames, patch: str) -> Runtime:
    """Return what runs the model's own modules, as they are when they run."""
    from unspool.runtimes.wrap.wrapped import WrappedModel

    wrapped = WrappedModel(model, own=options["own"], attention=attention if options["own"] else None, patch=patch)
    return _first((_general, _recompute), model, {**options, "wrapped": wrapped}, attention)


def _first(
    paths: Sequence[Callable[..., Runtime]], model: Any, options: dict[str, Any], attention: AttentionNames
) -> Runtime:
    reasons: list[str] = []
    for path in paths:
        try:
            return path(model, **options, **({"reason": "; ".join(reasons)} if reasons else {}))
        except ModelError as error:
            reasons.append(str(error))
            if options["own"]:
                restore_attention(attention)  # the slot cache may have changed it already
    raise ModelError(f"{type(model).__name__} cannot be run here: {'; '.join(reasons)}")


def _slots(model: Any, **options: Any) -> Runtime:
    if reason := slot_cache_obstacle(model):
        raise ModelError(reason)
    return DecoderRuntime(model, **options)


# A path is imported when it is tried: most models need the first alone.
def _general(model: Any, **options: Any) -> Runtime:
    from unspool.runtimes.generic.runtime import GeneralRuntime

    return GeneralRuntime(model, **options)


def _recompute(model: Any, **options: Any) -> Runtime:
    from unspool.runtimes.generic.recompute import RecomputeRuntime

    return RecomputeRuntime(model, **options)


def _beyond(model: Any, rope: GrowingRope, *, own: bool, attention: AttentionNames, patch: str) -> Runtime:
    """Return what runs sequences longer than the rotary embedding's original length."""
    from unspool.runtimes.wrap.wrapped import WrappedModel

    # Packed layers come with a model of ours; beside a user's own weights one packed copy is enough.
    wrapped = WrappedModel(model, own=own, pack=False, attention=attention if own else None, patch=patch)
    if rope.kind == "longrope":
        try:
            return _general(model, own=own, wrapped=wrapped)
        except ModelError as error:
            return _recompute(model, own=own, wrapped=wrapped, row_by_row=True, reason=str(error))
    reason = "the angles of all tokens change with each one"
    return _recompute(model, own=own, wrapped=wrapped, row_by_row=True, reason=reason)
