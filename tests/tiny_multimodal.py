"""Tiny random models that read images or audio beside text, with a batch of prompts for each.

Text weights are drawn wider than a fresh model's, so that an image changes the tokens behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB_SIZE = 97
IMAGE, START, VIDEO = 90, 91, 92

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
}
_GEMMA = {**_TEXT, "num_key_value_heads": 1, "head_dim": 8}


def _llava() -> Any:
    return transformers.LlavaConfig(
        text_config={"model_type": "llama", **_TEXT},
        vision_config={"model_type": "clip_vision_model", **_VISION},
        image_token_index=IMAGE,
        image_seq_length=4,
        vision_feature_layer=-1,
    )


def _gemma3() -> Any:
    layers = ["sliding_attention", "full_attention"]
    return transformers.Gemma3Config(
        text_config={"model_type": "gemma3_text", **_GEMMA, "sliding_window": 5, "layer_types": layers},
        vision_config={"model_type": "siglip_vision_model", **_VISION},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )


def _mistral3() -> Any:
    return transformers.Mistral3Config(
        text_config={"model_type": "mistral", **_TEXT, "sliding_window": None},
        vision_config={"model_type": "pixtral", **_VISION, "head_dim": 8, "image_size": 16},
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


def _qwen2_5_vl() -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "out_hidden_size": 32,
        "num_heads": 4,
        "patch_size": 4,
        "spatial_patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    return transformers.Qwen2_5_VLConfig(
        text_config={**_TEXT, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        vision_start_token_id=START,
        video_token_id=VIDEO,
    )


def _paligemma() -> Any:
    return transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **_GEMMA, "num_image_tokens": 4},
        vision_config={"model_type": "siglip_vision_model", **_VISION},
        image_token_index=IMAGE,
        projection_dim=32,
    )


def _blip_2(text: dict[str, Any], kind: type[Any] = transformers.Blip2Config) -> Any:
    return kind(
        text_config=text,
        vision_config={**_VISION, "initializer_range": 0.1},  # by default 1e-10: all images are equal
        qformer_config={
            **{name: _VISION[name] for name in ("num_hidden_layers", "num_attention_heads", "intermediate_size")},
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 16,
            "encoder_hidden_size": 16,
        },
        num_query_tokens=4,
        image_token_index=IMAGE,
    )


def _opt() -> dict[str, Any]:
    return {"model_type": "opt", **_TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32}


def _t5() -> dict[str, Any]:
    text = {"vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    ids = {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    return {"model_type": "t5", **text, **ids, "dense_act_fn": "gelu", "initializer_factor": 1.0}


def _qwen2_audio() -> Any:
    audio = {"num_mel_bins": 8, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}
    return transformers.Qwen2AudioConfig(
        text_config={"model_type": "qwen2", **_TEXT},
        audio_config={**audio, "max_source_positions": 10},
        audio_token_index=IMAGE,
    )


_CONFIGS: dict[str, Callable[[], Any]] = {
    "llava": _llava,
    "gemma3": _gemma3,
    "mistral3": _mistral3,
    "qwen2_5_vl": _qwen2_5_vl,
    "blip_2": lambda: _blip_2(_opt()),
    "blip_2_t5": lambda: _blip_2(_t5()),
    "instructblip": lambda: _blip_2({"model_type": "llama", **_TEXT}, transformers.InstructBlipConfig),
    "instructblip_t5": lambda: _blip_2(_t5(), transformers.InstructBlipConfig),
    "qwen2_audio": _qwen2_audio,
    "paligemma": _paligemma,
}

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)
"""All families by name."""


@cache
def tiny_multimodal(family: str) -> PreTrainedModel:
    """Return the model of a family in evaluation mode; the same object at each call."""
    config = _CONFIGS[family]()
    torch.manual_seed(1)
    model = transformers.AutoModelForMultimodalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "vision" not in name:
                parameter.mul_(40 if "crossattention" in name else 4)
    return model


def prompts_of(family: str) -> dict[str, torch.Tensor]:
    """Return the inputs of two prompts as arguments of `generate`: the first has no padding, the second some."""
    generator = torch.Generator().manual_seed(7)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    texts = [torch.randint(3, 80, (count,), generator=generator).tolist() for count in (3, 2, 4, 3)]
    image = [IMAGE] * 4
    first, second = [*texts[0], START, *image, *texts[2]], [*texts[1], START, *image, *texts[3]]
    inputs: dict[str, torch.Tensor] = {"pixel_values": floats(2, 3, 8, 8)}
    if family == "qwen2_5_vl":  # 4 x 4 patches make 4 tokens
        inputs = {"pixel_values": floats(32, 48), "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])}
    elif family == "mistral3":
        inputs = {"pixel_values": floats(2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16], [16, 16]])}
    elif family == "qwen2_audio":
        mask = torch.ones(2, 20, dtype=torch.int64)
        first, second = [*texts[0], *[IMAGE] * 5, *texts[2]], [*texts[1], *[IMAGE] * 5, *texts[3]]
        inputs = {"input_features": floats(2, 8, 20), "feature_attention_mask": mask}
    elif "blip" in family or family == "paligemma":
        first, second = [*image, *texts[0], *texts[2]], [*image, *texts[1], *texts[3]]
    if "instruct" in family:  # the Q-Former reads the question too
        asked = torch.tensor([texts[0], texts[3]])
        inputs |= {"qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked)}
    return inputs | _padded([first, second], family)


def _padded(rows: list[list[int]], family: str) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    found = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if family in ("gemma3", "paligemma"):
        found["token_type_ids"] = (ids == IMAGE).long()
    if family == "qwen2_5_vl":
        found["mm_token_type_ids"] = (ids == IMAGE).long()
    return found


def alone(family: str, inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """Return one prompt of `prompts_of` without padding."""
    kept = inputs["attention_mask"][row].bool()
    names = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    found = {name: value[row : row + 1] for name, value in inputs.items()}
    if family == "qwen2_5_vl":
        found["pixel_values"] = inputs["pixel_values"][16 * row : 16 * row + 16]
    return {name: value[:, kept] if name in names else value for name, value in found.items()}
