"""Kept rows: the logits of a prompt are computed once, and later calls only run the processors again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from unspool.config import GenerationConfig
from unspool.engine import Request
from unspool.model import LanguageModel
from unspool.per_prompt import group_prompts
from unspool.planning import PlannedRequest, resolve_options
from unspool.protocols import Runtime
from unspool.scoring import next_token_jobs
from unspool.strategies import NextTokenQuery
from unspool.types import Distribution, Feed, Rows, Seq

_COMBINED: Final = ("guidance_scale", "negative_prompt", "dola_layers", "batch_invariant")
"""Options that need other rows of the model than the kept ones."""

NUM_ROWS: Final = 64
"""Rows that are kept; the least recently used one goes first."""


class KeptRows(Runtime):
    """A runtime that answers from kept rows of logits instead of a model.

    Args:
        lm: the model that the rows come from.
        num_rows: number of rows to keep, at least 1.

    Attributes:
        passes: number of rows that the model computed.
    """

    def __init__(self, lm: LanguageModel, num_rows: int = NUM_ROWS) -> None:
        self._lm, self._num_rows = lm, num_rows
        self._rows: OrderedDict[tuple[str, tuple[int, ...]], torch.Tensor] = OrderedDict()
        self._cached: dict[Seq, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self.passes = 0
        self.info = replace(lm.info, hidden_states=False, num_layers=None, backend="kept rows")

    def row(self, prompt: tuple[int, ...], salt: str = "") -> torch.Tensor:
        """Return the logits after a prompt; the first call computes them. --> [vocab] float32

        salt: rows are shared by calls with one salt only.
        """
        key = (salt, prompt)
        with self._lock:
            if key not in self._rows:
                self._rows[key] = self._computed(prompt, salt)
                self.passes += 1
            self._rows.move_to_end(key)
            while len(self._rows) > self._num_rows:
                self._rows.popitem(last=False)
            return self._rows[key]

    def _computed(self, prompt: tuple[int, ...], salt: str) -> torch.Tensor:
        config, _ = resolve_options({"max_new_tokens": 1}, None, GenerationConfig())
        request = Request(prompt=prompt, config=config, seed=0, strategy=NextTokenQuery(), cache_salt=salt)
        (done,) = self._lm._driver.finish([request])
        distribution = done.rows[0].distribution
        assert distribution is not None, "a FullDistribution ask is answered with a distribution"
        return distribution.scores.float()  # in the space "logits", without processors, these are the logits

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and look up their rows; see Runtime.forward."""
        grown = {feed.seq: self._cached.get(feed.seq, ()) + tuple(feed.tokens) for feed in feeds}
        asked = [
            (grown[feed.seq][: len(grown[feed.seq]) - len(feed.tokens) + index + 1], feed.salt)
            for feed in feeds
            for index in feed.asked
        ]
        rows = [self.row(tokens, salt) for tokens, salt in asked]
        self._cached.update(grown)
        return Rows(torch.stack(rows) if rows else torch.empty(0, self.info.vocab_size))

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork."""
        self._cached[child] = self._cached[seq]

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; see Runtime.truncate."""
        self._cached[seq] = self._cached[seq][:keep]
        return len(self._cached[seq])

    def release(self, seq: Seq) -> None:
        """Forget a sequence; see Runtime.release."""
        self._cached.pop(seq, None)


class NextTokenReader:
    """Distributions of the next token, from kept rows if the options allow it.

    Args:
        lm: the model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self.rows = KeptRows(lm)
        self._kept = LanguageModel(self.rows, lm.tokenizer, config=lm.config)

    def read(self, prompt: Sequence[int], options: dict[str, Any]) -> tuple[PlannedRequest, Distribution]:
        """Return the request and the distribution after a prompt.

        Raises:
            PromptError, OptionError: as `LanguageModel.next_tokens`.
        """
        combined = any(name in options for name in _COMBINED) or self._lm.info.needs_source
        lm = self._lm if combined else self._kept
        prompts = lm._reader.split(list(prompt))
        jobs = next_token_jobs(group_prompts(prompts, None, options), lm.config, lm._plan)
        (found,) = lm._distributions(jobs, False)
        return jobs[0], found
