"""Tiny GGUF files, written with llama.cpp's own package from models and tokenizers of the tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

TEMPLATE = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}{% endfor %}<|turn|>assistant:"


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: Any = None,
    *,
    weights: str = "F32",
    pre: str | None = "gpt-2",
    architecture: str = "llama",
    without: tuple[str, ...] = (),
    extend: Callable[[Any], None] = lambda writer: None,
) -> Path:
    """Write a Llama of transformers as llama.cpp's converter does. Returns the path.

    Args:
        tokenizer: byte-level BPE; None for a file without one.
        weights: number format of the matrices: F32, F16 or Q8_0.
        pre: name of the split before BPE; None for none.
        without: names of tensors to leave out.
        extend: adds metadata or tensors to the writer.
    """
    import gguf

    kind = gguf.GGMLQuantizationType[weights]
    writer = gguf.GGUFWriter(str(path), architecture)
    _describe(writer, model.config)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, pre)
    extend(writer)
    for name, values in _tensors(model):
        if name not in without:
            form = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: Any, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _add_tokenizer(writer: Any, tokenizer: Any, pre: str | None) -> None:
    import gguf

    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([control if index in special else normal for _, index in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the weights in float32 under the names of GGUF."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values, kind = tensor.float().numpy(), name.split(".")[-2]
        if kind in heads:
            values = _interleaved(values, heads[kind])
        yield f"{names.get_name(name.removesuffix('.weight'))}.weight", values


def _interleaved(matrix: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return the rows of each head in llama.cpp's order: rotary pairs are neighbors."""
    height, width = matrix.shape
    return matrix.reshape(heads, 2, height // heads // 2, width).swapaxes(1, 2).reshape(height, width)


def greedy(model: PreTrainedModel, ids: list[int], **options: Any) -> list[int]:
    """Return the new tokens that transformers' generate writes."""
    written = model.generate(torch.tensor([ids]), do_sample=False, **options)
    return [int(token) for token in written[0, len(ids) :]]
