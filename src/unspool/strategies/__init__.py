"""Decoding strategies, one file each: conversations in plain numbers, without a model, a clock or a text."""

from collections.abc import Mapping
from types import MappingProxyType

from unspool.protocols import Strategy
from unspool.strategies.beam import BeamSearch
from unspool.strategies.beam_sample import BeamSampling
from unspool.strategies.greedy import Greedy
from unspool.strategies.inspect import ContinuationScores, NextTokenQuery, WithPromptScores
from unspool.strategies.sample import Sampling

STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {"greedy": Greedy(), "sample": Sampling(), "beam": BeamSearch(), "beam_sample": BeamSampling()}
)
"""The strategies that `GenerationConfig.strategy` can name."""

__all__ = [
    "STRATEGIES",
    "BeamSampling",
    "BeamSearch",
    "ContinuationScores",
    "Greedy",
    "NextTokenQuery",
    "Sampling",
    "WithPromptScores",
]
