"""Reads audio for an encoder: samples become features, features stay.

Owns: the checks of samples. Does not know: how long a model's window is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unspool.errors import PromptError

if TYPE_CHECKING:
    import torch

    from unspool.source_info import SourceInfo


def audio_features(
    given: Any, info: SourceInfo, *, processor: Any = None, sampling_rate: int | None = None
) -> torch.Tensor:
    """Return the features of audio of any length. Audio shorter than the extractor's window is filled with silence.

    Args:
        given: samples in [-1, 1], one-dimensional (numpy, torch or a list of floats); a mapping with "array" and
            "sampling_rate"; or features, returned as they are.
        info: of the model.
        processor: a processor or feature extractor, for samples.
        sampling_rate: of samples, in hertz; None for the model's own rate.

    Raises:
        PromptError: if the object is of another type, or if samples need a feature extractor.
    """
    import torch

    if isinstance(given, Mapping) and {"array", "sampling_rate"} <= given.keys():
        given, sampling_rate = given["array"], given["sampling_rate"]
    try:
        samples = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given).__name__
        raise PromptError(f"{info.model} reads samples or features of audio, got {kind}") from error
    if samples.ndim > 1:
        return samples
    extractor = getattr(processor, "feature_extractor", processor)
    if extractor is None:
        hint = "give the model's processor (transformers.AutoProcessor), or give features"
        raise PromptError(f"audio samples need a feature extractor; {hint}")
    _check_samples(samples, info, extractor, sampling_rate)
    options: dict[str, Any] = {"sampling_rate": info.sampling_rate, "return_tensors": "pt"}
    if len(samples) > getattr(extractor, "n_samples", len(samples)):
        options |= {"truncation": False, "padding": "longest"}
    return torch.as_tensor(extractor(samples.float().numpy(), **options)[info.input_name])


def _check_samples(samples: torch.Tensor, info: SourceInfo, extractor: Any, sampling_rate: int | None) -> None:
    if not samples.numel():
        raise PromptError("the audio holds no sample")
    if not samples.is_floating_point():
        kind = str(samples.dtype).removeprefix("torch.")
        raise PromptError(f"audio samples must be floats in [-1, 1], got {kind}; divide 16-bit samples by 32768")
    rate = info.sampling_rate or getattr(extractor, "sampling_rate", None)
    if sampling_rate is not None and rate is not None and sampling_rate != rate:
        raise PromptError(f"{info.model} reads audio at {rate} Hz, got {sampling_rate} Hz; resample it")
