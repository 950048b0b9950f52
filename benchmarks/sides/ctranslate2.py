"""CTranslate2, on a model that is converted in the run.

    python -m benchmarks.sides.ctranslate2 CHECKPOINT FOLDER WEIGHTS     converts

Its settings, so that it does the same work as the others: outputs of exactly the asked length (max_length = min_length,
no end token), prompts left out of the results (which also reads them in one pass), length_penalty 1, one hypothesis.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ctranslate2
from ctranslate2.converters import TransformersConverter

from benchmarks.checkpoints import tokenizer_folder
from benchmarks.sides.side import Run, Unavailable
from benchmarks.work import Work

_READ = {"num_beams"}


class CTranslate2:
    """Options of loading: `weights`, the form that they are stored and computed in: "float32", "int8", ..."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._generator: Any = None

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        weights = options["weights"]
        offered = ctranslate2.get_supported_compute_types("cpu")
        if weights not in offered:
            raise Unavailable(f"CTranslate2 lacks {weights} on this CPU, only {', '.join(sorted(offered))}")
        folder = checkpoint.parent / f"{checkpoint.name}-ctranslate2-{weights}"
        if not (folder / "model.bin").exists():
            command = [sys.executable, "-m", "benchmarks.sides.ctranslate2", str(checkpoint), str(folder), weights]
            subprocess.run(command, check=True)
        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type=weights, intra_threads=self._threads, inter_threads=1
        )
        return f"computes in {self._generator.compute_type}; include_prompt_in_result=False, min_length=max_length"

    def run(self, work: Work) -> Run:
        unread = sorted(set(work.options) - _READ)
        if unread:
            raise Unavailable(f"CTranslate2 lacks {unread[0]}")
        watch = _Watch() if work.watch_first else None
        results = self._generator.generate_batch(
            [[str(token) for token in prompt] for prompt in work.prompts],
            max_batch_size=work.batch_size or 0,
            beam_size=work.options.get("num_beams", 1),
            num_hypotheses=1,
            length_penalty=1,
            max_length=work.new_tokens,
            min_length=work.new_tokens,
            end_token=[],
            include_prompt_in_result=False,
            return_scores=False,
            callback=watch,
        )
        batches = -(-len(work.prompts) // work.batch_size) if work.batch_size else 1
        return Run(
            token_ids=[list(result.sequences_ids[0]) for result in results],
            first_seconds=watch.first_seconds if watch else None,
            passes=work.new_tokens * batches,
        )

    def versions(self) -> Mapping[str, str]:
        return {"ctranslate2": ctranslate2.__version__}


class _Watch:
    """Notes when the first token came."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.first_seconds: float | None = None

    def __call__(self, step: Any) -> bool:
        if self.first_seconds is None:
            self.first_seconds = time.perf_counter() - self._started
        return False


class _Converter(TransformersConverter):  # type: ignore[misc]
    """Takes the tokenizer from the folder of the weights."""

    def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **options: Any) -> Any:
        return tokenizer_class.from_pretrained(tokenizer_folder(Path(model_name_or_path)), **options)


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    """Write a checkpoint in CTranslate2's format; an unfinished one is never taken for whole."""
    unfinished = folder.with_name(folder.name + "-unfinished")
    _Converter(str(checkpoint)).convert(str(unfinished), quantization=weights, force=True)
    unfinished.rename(folder)


make: Callable[[int], CTranslate2] = CTranslate2

if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
