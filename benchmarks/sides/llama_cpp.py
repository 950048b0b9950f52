"""llama.cpp through llama-cpp-python's low-level API, on a GGUF file that is written in the run.

It has no beam search. With `num_beams` it decodes as many sequences side by side, greedily, in one batch a step: no
beam search of its could be faster, since that would have to choose among the beams and reorder them as well.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as api

from benchmarks.sides.side import Run, Unavailable
from benchmarks.work import Work

_READ = {"num_beams"}
_MOST_SEQUENCES = 8


class LlamaCpp:
    """Options of loading: `weights`, the form that matrices are stored in: "f16", "bf16", "f32", "q8_0" or "q4_0"."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._model: Any = None
        self._context: Any = None
        self._vocab_size = 0

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        weights = options["weights"]
        file = checkpoint.parent / f"{checkpoint.name}-{weights}.gguf"
        if not file.exists():
            command = [sys.executable, "-m", "benchmarks.sides.gguf_file", str(checkpoint), str(file), weights]
            subprocess.run(command, check=True)
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file.name}")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._context = self._new_context()
        units = re.findall(r"(\w+) = 1", api.llama_print_system_info().decode())
        return f"{weights}, keys and values in f16; built for {', '.join(units)}"

    def _new_context(self) -> Any:
        parameters = api.llama_context_default_params()
        parameters.n_ctx = api.llama_model_n_ctx_train(self._model)
        parameters.n_seq_max = _MOST_SEQUENCES
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = self._threads
        context = api.llama_init_from_model(self._model, parameters)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context")
        return context

    def run(self, work: Work) -> Run:
        unread = sorted(set(work.options) - _READ)
        if unread or len(work.prompts) > 1:
            raise Unavailable(f"llama.cpp is not asked for {unread[0] if unread else 'several prompts'} here")
        count = work.options.get("num_beams", 1)
        started = time.perf_counter()
        memory = api.llama_get_memory(self._context)
        api.llama_memory_clear(memory, False)
        prompt = work.prompts[0]
        (row,) = self._decode([(token, position, 0) for position, token in enumerate(prompt)], [len(prompt) - 1])
        newest = np.argsort(-row, kind="stable")[:count] if count > 1 else [row.argmax()]
        first = time.perf_counter() - started
        for sequence in range(1, count):
            api.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        written = [[int(token)] for token in newest]
        for position in range(len(prompt), len(prompt) + work.new_tokens - 1):
            tokens = [(ids[-1], position, sequence) for sequence, ids in enumerate(written)]
            for ids, row in zip(written, self._decode(tokens, range(count)), strict=True):
                ids.append(int(row.argmax()))
        return Run(token_ids=written[:1], first_seconds=first, passes=work.new_tokens)

    def _decode(self, tokens: Sequence[tuple[int, int, int]], asked: Sequence[int]) -> list[Any]:
        """Run one pass over (token, position, sequence) and return the logits of the asked places, as views."""
        most = api.llama_n_batch(self._context)
        if len(tokens) > most:
            self._decode(tokens[:most], [])
            return self._decode(tokens[most:], [place - most for place in asked])
        batch = api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for place, (token, position, sequence) in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, position
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
                batch.logits[place] = place in asked
            status = api.llama_decode(self._context, batch)
        finally:
            api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        logits = (api.llama_get_logits_ith(self._context, place) for place in asked)
        return [np.ctypeslib.as_array(row, shape=(self._vocab_size,)) for row in logits]

    def versions(self) -> Mapping[str, str]:
        return {"llama-cpp-python": llama_cpp.__version__}


make = LlamaCpp
