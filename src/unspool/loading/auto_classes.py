"""Which auto class of transformers loads a model."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)


def auto_class_of(config: Any) -> Any:
    """Return the auto class that loads models with this config."""
    if not getattr(config, "is_encoder_decoder", False):
        return AutoModelForCausalLM
    for auto in (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    return AutoModelForSeq2SeqLM
