"""From a GGUF file to a folder of transformers: weights, config, generation config, tokenizer.

transformers reads the file. Owns: checks for files that it would read wrong without an error. Does not know: the
folder's path.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoConfig

from unspool.errors import ModelError
from unspool.extras import require_extra
from unspool.loading.auto_classes import auto_class_of
from unspool.loading.gguf.header import Header, read_header
from unspool.loading.gguf.rotary import RotaryError, rotary_parameters
from unspool.loading.gguf.tokenizer import UnknownTokenizer, write_tokenizer

VERSION: Final = f"1 transformers {transformers.__version__}"
"""Another version of this module or of transformers converts files again."""

_END_OF_TURN: Final = "tokenizer.ggml.eot_token_id"


def convert(path: Path, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Write a GGUF file into a folder that transformers reads, with the weights dequantized.

    Args:
        path: the file.
        folder: an empty folder.
        dtype: of the weights.

    Returns:
        notes: "tokenizer" is the reason for a missing tokenizer, or None.

    Raises:
        ModelError: if the file is damaged, or transformers cannot read it.
        MissingExtra: if a package is absent.
    """
    require_extra("gguf", f"{path.name!r} is a GGUF file")
    header = read_header(path)
    _check_whole(path, header)
    try:
        _model(path, header, dtype).save_pretrained(folder)
        try:
            write_tokenizer(path, header.metadata, folder)
        except UnknownTokenizer as error:
            return {"tokenizer": str(error)}
    except ModelError:
        raise
    except Exception as error:  # transformers, gguf and safetensors can raise anything
        raise _refusal(path, header, _first_line(error)) from error
    return {"tokenizer": None}


def _model(path: Path, header: Header, dtype: torch.dtype) -> Any:
    place: dict[str, Any] = {"gguf_file": str(path)}
    config = AutoConfig.from_pretrained(path.parent, **place)
    _set_rotary(path, header, config)
    if hasattr(transformers, "GgufConfig"):
        place["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, info = auto_class_of(config).from_pretrained(
        path.parent, config=config, dtype=dtype, output_loading_info=True, **place
    )
    if absent := sorted(info["missing_keys"]):
        raise _refusal(path, header, f"it lacks weights for {absent[0]} ({len(absent)} tensors are missing)")
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)  # the weights are plain now
    _set_ends(model.generation_config, header.metadata)
    return model


def _set_rotary(path: Path, header: Header, config: Any) -> None:
    try:
        changes = rotary_parameters(path, header, getattr(config, "rope_parameters", None) or {})
    except RotaryError as error:
        raise _refusal(path, header, str(error)) from error
    if changes is not None:
        config.rope_parameters = changes


def _set_ends(config: Any, metadata: Mapping[str, Any]) -> None:
    """Add the end-of-turn token to the end tokens, as llama.cpp does: chat models write it instead of EOS."""
    end_of_turn, ends = metadata.get(_END_OF_TURN), config.eos_token_id
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if end_of_turn is not None and end_of_turn not in known:
        config.eos_token_id = [*known, end_of_turn]


def _check_whole(path: Path, header: Header) -> None:
    """Check that a file holds all its tensors.

    Raises:
        ModelError: if the file is cut short, is one part of several, or holds an unknown number format.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if (parts := header.metadata.get("split.count", 1)) > 1:
        raise _refusal(path, header, f"it is one of {parts} parts; join them with `llama-gguf-split --merge`")
    end = header.data_start
    for name, tensor in header.tensors.items():
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.ggml_type)]
        except (ValueError, KeyError):
            raise _refusal(path, header, f"{name} has the unknown number format {tensor.ggml_type}") from None
        end = max(end, header.data_start + tensor.offset + tensor.size // block * size)
    if (found := path.stat().st_size) < end:
        raise _refusal(path, header, f"it is cut short: {found} bytes instead of {end}")


def _refusal(path: Path, header: Header, reason: str) -> ModelError:
    return ModelError(f"cannot load {str(path)!r}, a GGUF file of architecture {header.architecture!r}: {reason}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
