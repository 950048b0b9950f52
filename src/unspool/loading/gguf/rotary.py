"""Scaled rotary embeddings of a GGUF file, which transformers' reader leaves out.

Owns: recognizing the scaling, or refusing it.
Source: llama.cpp, convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from unspool.loading.gguf.header import Header

_FACTORS: Final = "rope_freqs.weight"
_LONG: Final = "rope_factors_long.weight"
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The values of every Llama from 3.1 on; a file holds only the resulting factors."""
_FLOAT32: Final = 0


class RotaryError(Exception):
    """The scaling cannot be expressed; the message gives the reason."""


def rotary_parameters(path: Path, header: Header, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the correct `rope_parameters` of the config, or None if they are correct already.

    Args:
        path: the file. header: its header.
        found: the parameters that transformers has read.

    Raises:
        RotaryError: if the scaling is of another kind.
    """
    if found.get("rope_type", "default") != "default":
        return None  # transformers has read them
    prefix = f"{header.architecture}.rope.scaling"
    kind = header.metadata.get(f"{prefix}.type", "none")
    if _LONG in header.tensors:
        raise RotaryError("its rotary embedding changes with the length, which transformers does not read")
    if _FACTORS in header.tensors:
        return {**found, "rope_type": "llama3", **_llama3(path, header, float(found["rope_theta"]))}
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise RotaryError(f"its rotary embedding is scaled as {kind!r}, which transformers does not read")
    scaled = {**found, "rope_type": kind, "factor": float(header.metadata[f"{prefix}.factor"])}
    if (original := header.metadata.get(f"{prefix}.original_context_length")) is not None and kind == "yarn":
        scaled["original_max_position_embeddings"] = original
    return scaled


def _llama3(path: Path, header: Header, theta: float) -> dict[str, Any]:
    """Return the parameters that give the factors in the file."""
    tensor = header.tensors[_FACTORS]
    if tensor.ggml_type != _FLOAT32:
        raise RotaryError(f"{_FACTORS} is not in float32")
    factors = np.fromfile(path, np.float32, tensor.size, offset=header.data_start + tensor.offset)
    parameters = {"factor": float(factors.max()), **_LLAMA3}
    if not np.allclose(factors, _llama3_factors(theta, 2 * tensor.size, **parameters), rtol=1e-4):
        raise RotaryError("its rotary embedding is scaled in an unknown way")
    return parameters


def _llama3_factors(
    theta: float,
    width: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> np.ndarray[Any, Any]:
    """Return the factor by which each wavelength is stretched. --> [width / 2]"""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    smooth = (original_max_position_embeddings / wavelengths - low_freq_factor) / (high_freq_factor - low_freq_factor)
    # Below 0 the stretch is complete, above 1 it is absent.
    smooth = np.clip(smooth, 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)
