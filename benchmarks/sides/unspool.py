"""Unspool itself, as a user calls it: `unspool.load(folder)`, `lm.generate(prompts, ...)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

import unspool
from benchmarks.checkpoints import as_text, tokenizer_folder
from benchmarks.sides.side import Run
from benchmarks.work import Work
from unspool import Generation, LanguageModel

_PARTS = ("forward", "vocabulary", "bookkeeping", "steps")


class Unspool:
    """Options of loading: `assistant`, a folder inside the checkpoint's; all others are those of `unspool.load`."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._checkpoint = Path()
        self._lm: LanguageModel | None = None
        self._reader: LanguageModel | None = None
        self._assistant: LanguageModel | None = None

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        options = dict(options)
        assistant = options.pop("assistant", None)
        self._checkpoint = checkpoint
        self._lm = unspool.load(checkpoint, **options)
        self._assistant = unspool.load(checkpoint / assistant) if assistant else None
        return self._lm.info.backend

    def run(self, work: Work) -> Run:
        lm = self._reading_text() if work.text else self._lm
        assert lm is not None, "nothing is loaded"
        options = dict(work.options, max_new_tokens=work.new_tokens, ignore_eos=True)
        if work.assisted:
            options["assistant_model"] = self._assistant
        before = _counts(lm)
        generations = _watched(lm, work, options) if work.watch_first else _generated(lm, work, options)
        after = _counts(lm)
        return Run(
            token_ids=[list(generation.completions[0].token_ids) for generation in generations],
            first_seconds=generations[0].timing.seconds_to_first_token if work.watch_first else None,
            passes=None if work.assisted else int(after["passes"] - before["passes"]),
            parts={name: after[name] - before[name] for name in _PARTS},
        )

    def _reading_text(self) -> LanguageModel:
        """Return the model with its tokenizer; it is the same runtime, so that nothing is held twice."""
        if self._reader is None:
            assert self._lm is not None, "nothing is loaded"
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(self._checkpoint))
            self._reader = LanguageModel(self._lm.runtime, tokenizer, config=self._lm.config)
        return self._reader

    def versions(self) -> Mapping[str, str]:
        return {"unspool": unspool.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _generated(lm: LanguageModel, work: Work, options: Mapping[str, Any]) -> list[Generation]:
    prompts: Any = [as_text(ids) if work.text else list(ids) for ids in work.prompts]
    generations: list[Generation] = lm.generate(prompts, progress=False, **options)
    return generations


def _watched(lm: LanguageModel, work: Work, options: Mapping[str, Any]) -> list[Generation]:
    """Stream one prompt, so that the time of its first token is known."""
    stream = lm.stream(list(work.prompts[0]), **options)
    for _ in stream:
        pass
    return [stream.generation]


def _counts(lm: LanguageModel) -> dict[str, float]:
    return {name: getattr(lm.engine.timing, name) for name in (*_PARTS, "passes")}


make = Unspool
