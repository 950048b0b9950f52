"""Tiny random models of each family, made from configs with fixed seeds: small enough for a forward in a millisecond.

Weights are drawn wider than a fresh model's, so that greedy decoding does not fall into a loop of one token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 97
MAX_LENGTH = 256
WINDOW = 7

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH}
_GEMMA = {**_GROUPED, "head_dim": 16}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {**_GPT, "bos_token_id": 1, "eos_token_id": 2}),
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": WINDOW}),
    "gemma": ("GemmaConfig", {**_GEMMA, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2Config", {**_GEMMA, "sliding_window": WINDOW, "attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "num_hidden_layers": 4, "sliding_window": WINDOW, "_pattern": 2}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 16}),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "opt": ("OPTConfig", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "phi": ("PhiConfig", _COMMON),
    "ctrl": ("CTRLConfig", {**_GPT, "dff": 48}),
    "phi3": ("Phi3Config", {**_GROUPED, "sliding_window": WINDOW}),
    "starcoder2": ("Starcoder2Config", {**_GROUPED, "sliding_window": WINDOW}),
    "cohere": ("CohereConfig", _GROUPED),
    "olmo2": ("Olmo2Config", _GROUPED),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOssConfig",
        {**_GROUPED, "head_dim": 16, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "granite": ("GraniteConfig", _GROUPED),
    "gpt_bigcode": ("GPTBigCodeConfig", {**_GPT, "bos_token_id": 1, "eos_token_id": 2}),
    "persimmon": ("PersimmonConfig", _COMMON),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_GROUPED, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
}
"""Families that run on the slot cache: config class and what makes it tiny."""

UNSUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", _COMMON),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 8}),
    "mamba": ("MambaConfig", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "openai": ("OpenAIGPTConfig", _GPT),
}
"""Families that the slot cache refuses."""


def tiny_config(family: str, **changes: Any) -> Any:
    """Return the tiny config of a family, with some fields changed."""
    name, fields = (FAMILIES | UNSUPPORTED)[family]
    fields = {**fields, **changes}
    pattern = fields.pop("_pattern", None)
    if pattern is not None:
        kinds = ["sliding_attention"] * (pattern - 1) + ["full_attention"]
        fields["layer_types"] = (kinds * fields["num_hidden_layers"])[: fields["num_hidden_layers"]]
    return getattr(transformers, name)(**fields)


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Return a tiny random model in evaluation mode; the same weights for the same arguments.

    Args:
        family: a key of FAMILIES or UNSUPPORTED.
        changes: fields of the config to change.
    """
    config = tiny_config(family, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        widen(model, lambda shape: torch.randn(shape) * 0.25)
    return model.to(dtype).eval()


def widen(model: PreTrainedModel, draw: Callable[[torch.Size], torch.Tensor]) -> None:
    """Replace every matrix by what `draw` returns for its shape, and move every vector a little."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(draw(parameter.shape))
            else:
                parameter.add_(draw(parameter.shape) * 0.2)
