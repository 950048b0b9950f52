"""Options: all options as typed attributes, without the table or any checks.

Strategies, processors and the engine read a request's options through this class. `GenerationConfig` is its only
subclass that is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from unspool.config.fields.length import LengthOptions, StoppingOptions
from unspool.config.fields.models import EncoderOptions, SpeculationOptions
from unspool.config.fields.output import EngineOptions, OutputOptions
from unspool.config.fields.penalties import PenaltyOptions
from unspool.config.fields.sampling import SamplingOptions
from unspool.config.fields.search import SearchOptions
from unspool.config.fields.tokens import SpecialTokenOptions, TokenOptions


@dataclass(frozen=True, kw_only=True)
class Options(
    EncoderOptions,
    SpeculationOptions,
    EngineOptions,
    OutputOptions,
    SpecialTokenOptions,
    TokenOptions,
    PenaltyOptions,
    SamplingOptions,
    SearchOptions,
    StoppingOptions,
    LengthOptions,
):
    """Every option as an attribute; see docs/options.md."""
