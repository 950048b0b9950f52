"""Facts about a transformers model that need no forward: its limits, and obstacles to the slot cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation.utils import ALL_CACHE_NAMES

from unspool.runtimes.kv.limits import Limits
from unspool.types import ModelInfo

_LAYER_TYPES = {"full_attention", "sliding_attention"}
# With these, the rotary embedding of cached tokens changes if a sequence passes the original length.
_GROWING_ROPE = {"dynamic", "longrope"}
_LENGTHS = ("max_position_embeddings", "max_seq_len")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "layers_num_experts")


def text_config(model: Any) -> Any:
    """Return the part of the model's config that describes its text decoder.

    For some encoder-decoders this is a new copy of the config, which takes as long as ten modules: ask once.
    """
    config = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def generation_obstacle(model: Any) -> str | None:
    """Return why a model cannot generate text, in words; None if it is a generating model of transformers."""
    name = type(model).__name__
    if not isinstance(getattr(model, "base_model", model), PreTrainedModel):
        return f"{name} is not a transformers model"
    if not getattr(model, "can_generate", lambda: False)():
        return f"{name} has no language-model head to generate with"
    return None


def slot_cache_obstacle(model: Any) -> str | None:
    """Return why the slot cache cannot run the model, in words; None if its class and config show no reason.

    A probe in `DecoderModel` decides in the end.
    """
    if reason := generation_obstacle(model):
        return reason
    name, config = type(model).__name__, text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder"
    if getattr(model, "_is_stateful", False):
        return f"{name} keeps a recurrent state"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} does not use transformers' attention interface"
    if not getattr(config, "is_causal", True):
        return f"{name} attends in both directions"
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES):
        return f"{name} has layers of other kinds ({', '.join(others)})"
    if getattr(config, "cross_attention_layers", None):
        return f"{name} has layers that attend to images"
    if getattr(config, "attention_chunk_size", None):
        return f"{name} attends in chunks"
    return None


def forward_parameters(model: Any) -> frozenset[str]:
    """Return the argument names of the model's forward, and of its class's forward if that is replaced."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own: Any = inner.forward
    usual: Any = type(inner).forward
    forwards: tuple[Any, ...] = (usual,) if getattr(own, "__func__", None) is usual else (own, usual)
    return frozenset(name for forward in forwards for name in inspect.signature(forward).parameters)


def cache_names() -> tuple[str, ...]:
    """Return the arguments of a forward that carry its cache, in this version of transformers.

    transformers 5.24 renamed `past_key_values` to `cache`. Before, XLM had an argument of that name for another object.
    """
    return tuple(name for name in ("cache", "past_key_values", "cache_params", "state") if name in ALL_CACHE_NAMES)


def cache_argument(model: Any) -> str:
    """Return the name of the forward's argument for attention's cache."""
    is_renamed = "cache" in cache_names() and "cache" in forward_parameters(model)
    return "cache" if is_renamed else "past_key_values"


def sliding_layers(model: Any) -> set[int]:
    """Return the indices of the layers with a sliding window in the config."""
    types = getattr(text_config(model), "layer_types", None) or ()
    return {index for index, kind in enumerate(types) if kind == "sliding_attention"}


def num_hidden_layers(model: Any) -> int | None:
    """Return the number of the text decoder's layers in the config; None if the config does not tell it."""
    count = getattr(text_config(model), "num_hidden_layers", None)
    return count if isinstance(count, int) else None


def has_experts(config: Any) -> bool:
    """Return True if a text decoder routes tokens to experts. config: see `text_config`."""
    parts = [config, *(part for part in vars(config).values() if isinstance(part, PreTrainedConfig))]
    return any(_largest(getattr(part, name, None)) > 1 for part in parts for name in _EXPERTS)


def _largest(count: Any) -> int:
    """Return a number, or the largest of a list of numbers (one per layer); 0 for None."""
    return max(count, default=0) if isinstance(count, list | tuple) else count or 0


def _rope_settings(config: Any) -> Iterable[dict[str, Any]]:
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


class GrowingRope(NamedTuple):
    """A rotary embedding with other angles for all tokens if the sequence is longer than `original` tokens.

    kind: "longrope" has a second set of angles for all longer sequences, "dynamic" another set for each length.
    longest: the largest number of tokens that the config has angles for.
    """

    kind: str
    original: int
    longest: int


def growing_rope(model: Any) -> GrowingRope | None:
    """Return the rotary embedding that changes within the model's length; None for none."""
    return _growing_rope(text_config(model))


def _growing_rope(config: Any) -> GrowingRope | None:
    limit = _max_positions(config)
    for rope in _rope_settings(config):
        if (kind := rope.get("rope_type", rope.get("type"))) in _GROWING_ROPE:
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None) or limit
            if original is not None and (limit is None or original <= limit):
                longest = limit or original
                if kind == "dynamic":
                    longest = int(longest * max(1.0, rope.get("factor") or 1.0))
                return GrowingRope(kind, int(original), longest)
    return None


def max_positions(model: Any) -> int | None:
    """Return the maximum tokens per sequence by the config; None for no limit."""
    return _max_positions(text_config(model))


def _max_positions(config: Any) -> int | None:
    for name in _LENGTHS:
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def probe_length(limit: int | None, length: int) -> int:
    """Return the number of tokens of a probe: `length`, a power of two, halved until the model's limit allows it."""
    while limit is not None and length > max(1, limit):
        length //= 2
    return length


def length_limit(model: Any) -> tuple[int | None, str]:
    """Return the maximum tokens per sequence (None for no limit), and why it is below the config's, or ""."""
    return _length_limit(text_config(model))


def _length_limit(config: Any) -> tuple[int | None, str]:
    rope = _growing_rope(config)
    if rope is None:
        return _max_positions(config), ""
    return rope.original, f"{rope.kind} rotary embedding: sequences of at most {rope.original} tokens"


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def describe(
    model: Any,
    config: Any,
    *,
    vocab_size: int,
    backend: str,
    batch_invariance_obstacle: str,
    hidden_states: bool,
    num_layers: int | None,
    limits: Limits,
    reads_whole: bool = False,
    takes_source: bool = False,
    bytes_per_token: int | None,
) -> ModelInfo:
    """Return the facts for the engine. Token ids come from the generation config, else from `config`.

    config: see `text_config`.
    """
    generation = getattr(model, "generation_config", None)

    def special(name: str) -> Any:
        value = getattr(generation, name, None)
        return getattr(config, name, None) if value is None else value

    limit, _ = _length_limit(config)
    return ModelInfo(
        name=getattr(model.config, "_name_or_path", "") or type(model).__name__,
        vocab_size=vocab_size,
        eos_token_ids=_ids(special("eos_token_id")),
        bos_token_id=next(iter(_ids(special("bos_token_id"))), None),
        pad_token_id=special("pad_token_id"),
        max_length=limit,
        **limits._asdict(),
        bytes_per_token=bytes_per_token,
        batch_invariant=not batch_invariance_obstacle,
        batch_invariance_obstacle=batch_invariance_obstacle,
        hidden_states=hidden_states,
        num_layers=num_layers,
        reads_whole=reads_whole,
        takes_source=takes_source,
        tied_head=bool(getattr(model.config, "tie_word_embeddings", False)),
        backend=backend,
    )
