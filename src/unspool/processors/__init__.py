"""Logits processors: the registry by option name, and the order in which they run.

Owns: the registry. Does not know: which processors a request uses; `start` of a processor returns None if it is off.
One object per processor serves all requests; all data of a request or branch is in its state.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from unspool.options.order import PROCESSOR_ORDER as DEFAULT_ORDER
from unspool.processors.bias import SequenceBias
from unspool.processors.diversity import Diversity
from unspool.processors.dry import Dry
from unspool.processors.entropy import EpsilonCutoff, EtaCutoff, TypicalP
from unspool.processors.grammar import Grammar
from unspool.processors.length import ExponentialDecay, MinLength, MinNewTokens
from unspool.processors.masks import BadWords, BeginSuppressTokens, ForcedBos, ForcedEos, SuppressTokens
from unspool.processors.ngrams import EncoderNoRepeatNgram, NoRepeatNgram
from unspool.processors.penalties import (
    EncoderRepetitionPenalty,
    FrequencyPenalty,
    PresencePenalty,
    RepetitionPenalty,
)
from unspool.processors.shaping import RemoveInvalidValues, RenormalizeLogits, Temperature
from unspool.processors.truncation import MinP, TopH, TopK, TopNSigma, TopP
from unspool.processors.xtc import Xtc
from unspool.protocols import Processor

_ALL: tuple[Processor, ...] = (
    Grammar(),
    SequenceBias(),
    Diversity(),
    EncoderRepetitionPenalty(),
    RepetitionPenalty(),
    PresencePenalty(),
    FrequencyPenalty(),
    Dry(),
    NoRepeatNgram(),
    EncoderNoRepeatNgram(),
    BadWords(),
    MinLength(),
    MinNewTokens(),
    ForcedBos(),
    ForcedEos(),
    RemoveInvalidValues(),
    ExponentialDecay(),
    SuppressTokens(),
    BeginSuppressTokens(),
    Temperature(),
    TopH(),
    TopK(),
    TopP(),
    MinP(),
    TypicalP(),
    EpsilonCutoff(),
    EtaCutoff(),
    TopNSigma(),
    Xtc(),
    RenormalizeLogits(),
)

PROCESSORS: Final[Mapping[str, Processor]] = MappingProxyType({processor.name: processor for processor in _ALL})
"""name --> the processor of that name, for every name in DEFAULT_ORDER except "user"."""

__all__ = ["DEFAULT_ORDER", "PROCESSORS"]
