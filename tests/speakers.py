"""Language models of the tests' own that need no weights: a tokenizer trained in the test over a toy runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.text.tokenizers import byte_level
from unspool import LanguageModel
from unspool.runtimes.toy import ToyRuntime


def recite(*texts: str, **options: Any) -> LanguageModel:
    """A model that recites: after any prompt, output token n is token n of the first text that begins like the output.

    The output begins behind the last newline, so prompts end with one. Then it ends.
    """
    tokenizer = byte_level()
    end = tokenizer.eos_token_id
    lines = [(*tokenizer(text)["input_ids"], end) for text in texts]
    newline = tokenizer("\n")["input_ids"][-1]
    vocab = len(tokenizer)

    def probabilities(tokens: tuple[int, ...]) -> Sequence[float]:
        spoken = tokens[len(tokens) - tokens[::-1].index(newline) :] if newline in tokens else ()
        row = [1e-6] * vocab
        for share, line in enumerate(
            line for line in lines if line[: len(spoken)] == spoken and len(line) > len(spoken)
        ):
            row[line[len(spoken)]] += 1.0 / (share + 1)
        if max(row) < 1e-3:
            row[end] = 1.0
        return row

    runtime = ToyRuntime(probabilities, vocab, eos_token_ids=(end,), **options)
    return LanguageModel(runtime, tokenizer)
