"""Sorts the keyword arguments of a transformers-style call: options, ignorable arguments, refused arguments.

Owns: the arguments of `model.generate` that are not options of GenerationConfig. Does not know: the meaning of options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from unspool.config import GenerationConfig, option_status
from unspool.config.foreign import is_set
from unspool.config.generation import check_foreign
from unspool.errors import OptionError
from unspool.interop.lenient import lenient
from unspool.interop.transformers_objects import callables
from unspool.runtimes.model_info import cache_names

CACHE: Final = cache_names()[0]
"""The cache among the arguments and in the results of `generate`; transformers 5.24 renamed `past_key_values`."""

_CACHES: Final = tuple(dict.fromkeys([CACHE, "past_key_values", "cache_params"]))
"""This name and the names before 5.24, which `generate` still accepts; the last is that of models like Mamba."""

_FEEDS_IDS: Final = "is not read: only the token ids of `input_ids` are fed"
REFUSED: Final[Mapping[str, tuple[str, str]]] = {
    "assistant_tokenizer": (
        "is not supported: a draft model must have the model's own tokenizer",
        "leave it out, and give a draft model of the same family",
    ),
    "custom_generate": (
        "is not read: the engine decodes by itself",
        "use `strategy`, or model.generate(..., custom_generate=unspool.decoding_method)",
    ),
    "synced_gpus": (
        "is not supported: a model runs in one process",
        "leave it out; load the whole model in one process",
    ),
    "inputs_embeds": (
        _FEEDS_IDS,
        "give the prompt as `input_ids`; for embeddings that no token has, use model.generate",
    ),
    "token_type_ids": ("is not read by this model", "leave it out: tokenizer(..., return_token_type_ids=False)"),
    **dict.fromkeys(_CACHES, ("is not read by this model", "give the whole prompt as `input_ids`")),
}
"""Refused if set: argument --> (reason, remedy)."""

ENCODER: Final = (
    "decoder_input_ids",
    "decoder_attention_mask",
    "input_features",
    "pixel_values",
    "encoder_outputs",
)
"""Arguments that only models with an encoder read."""

SPEECH: Final = (
    "language",
    "task",
    "is_multilingual",
    "return_timestamps",
    "return_token_timestamps",
    "return_segments",
    "prompt_ids",
    "prompt_condition_type",
    "condition_on_prev_tokens",
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
    "time_precision",
    "time_precision_features",
    "force_unique_generate_call",
    "monitor_progress",
    "num_segment_frames",
    "num_frames",
)
"""Arguments that only speech models read."""

NO_EFFECT: Final = frozenset({"cache_position", "logits_to_keep", "return_dict", "trust_remote_code"})
"""Accepted and ignored: the engine decides how to call the model's forward, and the model is loaded already."""


_TENSORS: Final = (
    "input_ids",
    "inputs",
    "attention_mask",
    "position_ids",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
_OBJECTS: Final = ("tokenizer", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer")

KNOWN: Final = frozenset(
    {*_TENSORS, *_OBJECTS, *ENCODER, *SPEECH, *REFUSED, *NO_EFFECT, "processors", "criteria", "strategy"}
) - {*_CACHES, "token_type_ids", "cache_position"}
"""Arguments that this module reads. The others can be arguments of the model's own forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of one call.

    input_ids, attention_mask, position_ids: the prompts, as given. encoder_input: an image or audio that is the first
    positional argument beside `input_ids`; else None. negative_prompt_ids, negative_prompt_attention_mask: the negative
    prompts of classifier-free guidance, as given. tokenizer: for options that hold text. logits_processor,
    stopping_criteria, prefix_allowed_tokens_fn, streamer: objects of transformers, or with the same methods. embedded:
    name --> value of embeddings, images, audio and further inputs of the prompts. encoder: name --> value of the
    arguments that only models with an encoder read. options: all other arguments.
    """

    input_ids: Any
    encoder_input: Any = None
    attention_mask: Any
    position_ids: Any
    negative_prompt_ids: Any
    negative_prompt_attention_mask: Any
    tokenizer: Any = None
    logits_processor: tuple[Any, ...] = ()
    stopping_criteria: tuple[Any, ...] = ()
    prefix_allowed_tokens_fn: Any = None
    streamer: Any = None
    embedded: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any]


def with_current_names(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a call with its cache under the name in this version of transformers."""
    found = next((name for name in _CACHES if given.get(name) is not None), CACHE)
    if found == CACHE or CACHE != "cache":
        return given
    return {**{name: value for name, value in given.items() if name != found}, CACHE: given[found]}


def sort_arguments(given: Mapping[str, Any], embedded: Mapping[str, Any] | None = None) -> Arguments:
    """Return the arguments of a call sorted. `inputs` is another name for `input_ids`, or an encoder's input beside it.

    Args:
        given: all arguments but those of `embedded`.
        embedded: embeddings, images, audio and further inputs of the prompts; None for none.

    Raises:
        OptionError: if an argument is refused, or needs another one.
    """
    options = {name: value for name, value in given.items() if name not in NO_EFFECT}
    for name, (reason, remedy) in REFUSED.items():
        value = options.pop(name, None)
        if is_set(value):
            raise OptionError(name, value, reason, remedy)
    tensors = {name: options.pop(name, None) for name in _TENSORS}
    encoder = {name: value for name in (*ENCODER, *SPEECH) if (value := options.pop(name, None)) is not None}
    inputs, encoder_input = tensors.pop("inputs"), None
    if tensors["input_ids"] is None:
        tensors["input_ids"] = inputs
    elif isinstance(inputs, torch.Tensor) and inputs.is_floating_point():
        encoder_input = inputs
    elif inputs is not None:
        raise OptionError("inputs", inputs, "is another name for `input_ids`", "leave out one of the two")
    if tensors["negative_prompt_attention_mask"] is not None and tensors["negative_prompt_ids"] is None:
        allowed, given = "cannot be given without `negative_prompt_ids`", tensors["negative_prompt_attention_mask"]
        raise OptionError("negative_prompt_attention_mask", given, allowed, "give the negative prompts as well")
    for name, value in tensors.items():
        if value is not None and tensors["input_ids"] is None and not encoder and not embedded:
            raise OptionError(name, value, "cannot be given without `input_ids`", "give the prompts as well")
    objects = {name: options.pop(name, None) for name in _OBJECTS}
    for name in ("logits_processor", "stopping_criteria"):
        objects[name] = callables(name, objects[name])
    prefix = objects["prefix_allowed_tokens_fn"]
    if prefix is not None and not callable(prefix):
        allowed = "must be a function of (batch_id, input_ids)"
        raise OptionError("prefix_allowed_tokens_fn", prefix, allowed, "give one, or leave it out")
    return Arguments(
        **tensors,
        **objects,
        encoder_input=encoder_input,
        embedded=embedded or {},
        encoder=encoder,
        options=options,
    )


def read_config(given: Any, stored: GenerationConfig, *, strict: bool = False) -> GenerationConfig | None:
    """Return a call's `generation_config`, transformers' or ours, as one of ours.

    Args:
        given: None for none.
        stored: the model's own; an unknown attribute is accepted if it has the stored value.
        strict: True to convert no values.

    Raises:
        OptionError: if it is not a config, or holds an unknown attribute.
    """
    if given is None or isinstance(given, GenerationConfig):
        return given
    if not hasattr(given, "to_diff_dict"):
        allowed = "must be a GenerationConfig of transformers or of unspool"
        hint = "give all other arguments by name: attention_mask=mask, max_new_tokens=20"
        raise OptionError("generation_config", given, allowed, hint)
    values = {name: value for name, value in vars(given).items() if not name.startswith("_")}
    config = GenerationConfig.from_stored(values if strict else lenient(values))
    for name, value in config.extras.items():
        if name in SPEECH:
            continue  # read together with the call's own arguments
        if option_status(name) == "unknown" and is_set(value) and value != stored.extras.get(name):
            check_foreign(name, value)
    return config
