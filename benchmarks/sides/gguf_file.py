"""Writes a Llama checkpoint as a GGUF file, for llama.cpp.

    python -m benchmarks.sides.gguf_file CHECKPOINT FILE WEIGHTS

It holds no tokenizer: token ids go in and come out.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors import safe_open

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(checkpoint: Path, file: Path, weights: str) -> None:
    """Write a checkpoint's matrices in the form of that name, and its vectors in float32, as is usual."""
    config = json.loads((checkpoint / "config.json").read_text())
    unfinished = file.with_name(file.name + ".unfinished")
    writer = gguf.GGUFWriter(str(unfinished), "llama")
    _describe(writer, config, weights)
    for name, values in _tensors(checkpoint, config):
        kind = TYPES[weights] if values.ndim > 1 else TYPES["f32"]
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, file)


def _describe(writer: Any, config: dict[str, Any], weights: str) -> None:
    writer.add_file_type(_FILE_TYPES[weights])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("no_vocab")


def _tensors(checkpoint: Path, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the checkpoint's tensors in float32 under the names of GGUF."""
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                values = tensors.get_tensor(key).float().numpy()
                name, layer = key.removesuffix(".weight"), None
                if name.startswith("model.layers."):
                    _, _, layer, name = name.split(".", 3)
                if name in heads:
                    values = _interleaved(values, heads[name])
                yield (f"blk.{layer}.{_INNER[name]}" if layer else _OUTER[name]) + ".weight", values


def _interleaved(matrix: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return the rows of each head as llama.cpp turns them: neighbors form a pair, not the halves."""
    height, width = matrix.shape
    return matrix.reshape(heads, 2, height // heads // 2, width).swapaxes(1, 2).reshape(height, width)


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
