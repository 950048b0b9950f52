"""Sequence bias: adds biases to the scores of tokens that would complete given sequences.

Owns: sequence_bias. Does not know: the output beyond its last tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from unspool.errors import OptionError
from unspool.processors.cells import cells_of, floats_of
from unspool.processors.suffixes import Matching, SuffixMatching, matching
from unspool.protocols import Context, RowKey


class SequenceBias(SuffixMatching):
    """Add a bias to each token that would complete one of the `sequence_bias` sequences. Off at None and empty.

    A single token gets its bias at every step. The last token of a longer sequence gets it if prompt and output end
    with all tokens before it. Several biases on the same token add up.

    Worked example: after ... 4, {(7,): 1.0, (4, 7): 2.5, (5, 7): 9.0} adds 3.5 to token 7.

    Source: transformers, `SequenceBiasLogitsProcessor`.
    """

    name = "sequence_bias"

    def start(self, context: Context) -> Matching | None:
        """Return the sequences and the prompt's last tokens; None if it is off.

        Raises:
            OptionError: if a token is outside the vocabulary.
        """
        given = context.config.sequence_bias
        if not given:
            return None
        pairs = given.items() if isinstance(given, Mapping) else given
        biases = {tuple(tokens): float(bias) for tokens, bias in pairs}
        refuse_unknown(self.name, biases, context)
        return matching(biases.items(), context.prompt)

    def apply(self, states: Sequence[Matching], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores with the biases added in place. scores: [rows, vocab]"""
        # Within one addition no cell occurs twice, so the order of summation is fixed.
        singles = cells_of([s.table.single_ids for s in states], scores)
        if len(singles.tokens):
            biases = floats_of([s.table.single_values for s in states], scores)
            scores[singles.rows, singles.tokens] += biases
        found = [s.table.completions(s.newest) for s in states]
        if any(found):
            cells = cells_of([np.fromiter(row, dtype=np.int64, count=len(row)) for row in found], scores)
            values = [np.fromiter(row.values(), dtype=np.float32, count=len(row)) for row in found]
            scores[cells.rows, cells.tokens] += floats_of(values, scores)
        return scores


def refuse_unknown(option: str, sequences: Mapping[tuple[int, ...], float], context: Context) -> None:
    """Check that all tokens of the sequences are in the vocabulary.

    Raises:
        OptionError: if a token is outside the vocabulary.
    """
    vocab_size = context.info.vocab_size
    for tokens in sequences:
        unknown = [token for token in tokens if not 0 <= token < vocab_size]
        if unknown:
            raise OptionError(option, unknown[0], f"must hold token ids in [0, {vocab_size})", "check the tokenizer")
