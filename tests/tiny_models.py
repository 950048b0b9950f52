"""Tiny random models of each family, made from configs with fixed seeds: small enough for a forward in a millisecond.

Weights are drawn wider than a fresh model's, so that greedy decoding does not fall into a loop of one token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GPTJForCausalLM, LlamaForCausalLM, PreTrainedModel

VOCAB_SIZE = 97
MAX_LENGTH = 256
WINDOW = 7
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
"""The name of the cache in the installed transformers; 5.24 renamed it, and warns of the earlier name."""

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

_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_STATE: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, **_ENDS}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_FEW_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}

GENERAL: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_ENDS}),
    "falcon": ("FalconConfig", _COMMON),
    "falcon_alibi": ("FalconConfig", {**_COMMON, "alibi": True}),
    "falcon_grouped": ("FalconConfig", {**_COMMON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": (
        "MptConfig",
        {"vocab_size": VOCAB_SIZE, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": MAX_LENGTH, **_ENDS},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": MAX_LENGTH,
            **_ENDS,
        },
    ),
    "stablelm": ("StableLmConfig", _GROUPED),
    "mamba": ("MambaConfig", _STATE),
    "mamba2": (
        "Mamba2Config",
        {**_STATE, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    ),
    "falcon_mamba": ("FalconMambaConfig", {**_STATE, "state_size": 8}),
    "rwkv": (
        "RwkvConfig",
        {**_STATE, "attention_hidden_size": 32, "intermediate_size": 48, "rescale_every": 1},
    ),
    "jamba": (
        "JambaConfig",
        {
            **_GROUPED,
            **_FEW_EXPERTS,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
        },
    ),
    "bamba": ("BambaConfig", {**_GROUPED, **_MAMBA, "attn_layer_indices": [1], "mamba_chunk_size": 8}),
    "falcon_h1": ("FalconH1Config", {**_GROUPED, **_MAMBA, "mamba_d_ssm": 64, "mamba_chunk_size": 8}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_GROUPED,
            **_FEW_EXPERTS,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "lfm2": ("Lfm2Config", {**_GROUPED, "num_hidden_layers": 4, "full_attn_idxs": [1, 3]}),
    "llama4": (
        "Llama4TextConfig",
        {
            **_GROUPED,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_hidden_layers": 4,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 8,
        },
    ),
    "phimoe": (
        "PhimoeConfig",
        {**_GROUPED, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
"""Families that run on their own cache."""

RECOMPUTED: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("OpenAIGPTConfig", {**_GPT, **_ENDS}),
    "xlnet": (
        "XLNetConfig",
        {"vocab_size": VOCAB_SIZE, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, **_ENDS},
    ),
    "xlm": (
        "XLMConfig",
        {"vocab_size": VOCAB_SIZE, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": MAX_LENGTH},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {**_COMMON, "num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16},
    ),
    "bert": ("BertConfig", _COMMON),
}
"""Families that have no cache of use: every forward reads the whole sequence."""

_JOINED: dict[str, tuple[str, dict[str, Any]]] = {
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 8, **_ENDS}),
    "codegen": ("CodeGenConfig", {**_GPT, "n_ctx": MAX_LENGTH, "rotary_dim": 8, **_ENDS}),
}
(FAMILIES if GPTJForCausalLM._supports_attention_backend else GENERAL).update(_JOINED)
"""Families that use transformers' attention interface from 5.24 on."""

OTHERS = GENERAL | RECOMPUTED
"""Families that do not run on the slot cache."""

UNSUPPORTED = {family: each for family, each in OTHERS.items() if family != "bert"}
"""Families that the slot cache refuses by what they say of themselves; the other one fails its trial."""


def tiny_config(family: str, **changes: Any) -> Any:
    """Return the tiny config of a family, with some fields changed."""
    name, fields = (FAMILIES | OTHERS)[family]
    fields = {**fields, **changes}
    pattern = fields.pop("_pattern", None)
    if pattern is not None:
        kinds = ["sliding_attention"] * (pattern - 1) + ["full_attention"]
        fields["layer_types"] = (kinds * fields["num_hidden_layers"])[: fields["num_hidden_layers"]]
    return getattr(transformers, name)(**fields)


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Return a tiny random model in evaluation mode; the same weights for the same arguments.

    Args:
        family: a key of FAMILIES or OTHERS.
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
