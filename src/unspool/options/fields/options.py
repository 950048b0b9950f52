"""Options: all options as typed attributes, without the option table and without checks.

Strategies, processors and the engine read a request's options through this class. The instances are always of the
subclass `GenerationConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass

from unspool.options.fields.grammars import GrammarOptions
from unspool.options.fields.length import LengthOptions, StoppingOptions
from unspool.options.fields.models import EncoderOptions, SpeculationOptions
from unspool.options.fields.output import EngineOptions, OutputOptions
from unspool.options.fields.penalties import PenaltyOptions
from unspool.options.fields.sampling import SamplingOptions
from unspool.options.fields.search import SearchOptions
from unspool.options.fields.tokens import SpecialTokenOptions, TokenOptions


@dataclass(frozen=True, kw_only=True)
class Options(
    EncoderOptions,
    SpeculationOptions,
    EngineOptions,
    OutputOptions,
    SpecialTokenOptions,
    TokenOptions,
    GrammarOptions,
    PenaltyOptions,
    SamplingOptions,
    SearchOptions,
    StoppingOptions,
    LengthOptions,
):
    """Every option as an attribute; see docs/options.md."""
