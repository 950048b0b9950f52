"""The `system_fingerprint` of answers: it changes with the version, the backend, the data type and the weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

import torch

from unspool.model import LanguageModel

_NUM_VALUES: Final = 64
"""Values of each weight that count, at equal distances. Reading all of a large model would take seconds."""

_MAX_PACKED: Final = 8
"""Most packed layers that count, at equal distances: reading one unpacks it."""


def fingerprint(lm: LanguageModel) -> str:
    """Return the fingerprint of a model. Without a model of transformers, the weights do not count."""
    digest = hashlib.sha256(f"{version('unspool')} {lm.info.name} {lm.info.backend} {lm.info.vocab_size}".encode())
    if lm.model is not None:
        for name, weight in _weights(lm.model):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(_sample(weight))
    return f"unspool-{version('unspool')}-{digest.hexdigest()[:8]}"


def _weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters, and weights of packed layers, which are not parameters."""
    yield from model.named_parameters()
    packed = [
        (name, module)
        for name, module in model.named_modules()
        if "weight" not in module._parameters and isinstance(getattr(module, "weight", None), torch.Tensor)
    ]
    for name, module in packed[:: max(1, math.ceil(len(packed) / _MAX_PACKED))]:
        yield f"{name}.weight", module.weight


def _sample(weight: torch.Tensor) -> bytes:
    if weight.is_meta or not weight.numel():
        return b""
    flat = weight.detach().reshape(-1)
    picked = torch.linspace(0, len(flat) - 1, _NUM_VALUES, dtype=torch.float64).long()
    return flat[picked.to(flat.device)].to("cpu", torch.float64).numpy().tobytes()
