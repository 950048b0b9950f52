"""Decoding strategies, one per file: generators over plain numbers, without a model, a clock or text."""

from unspool.strategies.assisted import Assisted
from unspool.strategies.beam import BeamSearch
from unspool.strategies.beam_sample import BeamSampling
from unspool.strategies.best_of import BestOf
from unspool.strategies.constrained_beam import ConstrainedBeamSearch
from unspool.strategies.contrastive import ContrastiveSearch
from unspool.strategies.diverse_beam import DiverseBeamSearch
from unspool.strategies.dola import Dola
from unspool.strategies.greedy import Greedy
from unspool.strategies.inspect import ContinuationScores, NextTokenQuery, WithPromptScores
from unspool.strategies.registry import STRATEGIES
from unspool.strategies.sample import Sampling
from unspool.strategies.stochastic_beam import StochasticBeamSearch

__all__ = [
    "STRATEGIES",
    "Assisted",
    "BeamSampling",
    "BeamSearch",
    "BestOf",
    "ConstrainedBeamSearch",
    "ContinuationScores",
    "ContrastiveSearch",
    "DiverseBeamSearch",
    "Dola",
    "Greedy",
    "NextTokenQuery",
    "Sampling",
    "StochasticBeamSearch",
    "WithPromptScores",
]
