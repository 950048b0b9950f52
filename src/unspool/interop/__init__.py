"""Doors for people who come from transformers: its calls, its tensors and its output classes around our engine."""

from unspool.interop.custom import decoding_method
from unspool.interop.drop_in import generate

__all__ = ["decoding_method", "generate"]
