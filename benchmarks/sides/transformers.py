"""transformers: `model.generate` on a padded batch, or its text-generation pipeline."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.generation.streamers import BaseStreamer

from benchmarks.checkpoints import as_ids, as_text, tokenizer_folder
from benchmarks.sides.side import Run
from benchmarks.work import Work

_PAD = 0


class Transformers:
    """Options of loading: `assistant`, a draft model's folder inside the checkpoint's; `dtype`."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model: Any = None
        self._assistant: Any = None
        self._pipeline: Any = None
        self._checkpoint = Path()

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        dtype = options.get("dtype", "auto")
        self._checkpoint = checkpoint
        self._model = _model(checkpoint, dtype)
        if options.get("assistant"):
            self._assistant = _model(checkpoint / options["assistant"], dtype)
        return f"{self._model.dtype}, attention {self._model.config._attn_implementation}"

    def run(self, work: Work) -> Run:
        size = work.batch_size or len(work.prompts)
        batches = [work.prompts[start : start + size] for start in range(0, len(work.prompts), size)]
        counted = None if work.assisted else work.new_tokens * len(batches)
        if work.text:
            return Run(token_ids=self._write_texts(work, size), passes=counted)
        watch = _Watch() if work.watch_first else None
        rows = [row for batch in batches for row in self._write(batch, work, watch)]
        return Run(token_ids=rows, first_seconds=watch.first_seconds if watch else None, passes=counted)

    def _write(self, prompts: Sequence[Sequence[int]], work: Work, watch: _Watch | None) -> list[list[int]]:
        width = max(map(len, prompts))
        gaps = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor([[_PAD] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)])
        mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
        options = dict(work.options)
        if work.assisted:
            options["assistant_model"] = self._assistant
        if watch is not None:
            options["streamer"] = watch
        rows = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=work.new_tokens, do_sample=False, **options
        )
        return [row[width:].tolist() for row in rows]

    def _write_texts(self, work: Work, batch_size: int) -> list[list[int]]:
        if self._pipeline is None:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(self._checkpoint), padding_side="left")
            self._pipeline = pipeline("text-generation", model=self._model, tokenizer=tokenizer)
        records = self._pipeline(
            [as_text(prompt) for prompt in work.prompts],
            batch_size=batch_size,
            max_new_tokens=work.new_tokens,
            do_sample=False,
            return_full_text=False,
            **work.options,
        )
        return [as_ids(record[0]["generated_text"]) for record in records]

    def versions(self) -> Mapping[str, str]:
        return {"transformers": transformers.__version__, "torch": torch.__version__}


class _Watch(BaseStreamer):
    """Notes when the first token came: the first thing handed over is the prompt."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._count = 0
        self.first_seconds: float | None = None

    def put(self, value: torch.Tensor) -> None:
        self._count += 1
        if self._count == 2:
            self.first_seconds = time.perf_counter() - self._started

    def end(self) -> None:
        pass


def _model(folder: Any, dtype: str) -> Any:
    """Return a model that writes on whatever it has written: outputs are as long as the work says."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = _PAD
    return model


make = Transformers
