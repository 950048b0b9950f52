"""`import unspool.replace_generate` gives every model's `generate` our engine, and `undo` takes it back."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import torch
import transformers

import unspool
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import random_source, tiny_seq2seq

ids = torch.tensor([[11, 12, 13], [21, 22, 23]])
calls = {"max_new_tokens": 6, "num_beams": 3, "pad_token_id": 1}
features = random_source("whisper").inputs["input_features"]
models = [(tiny_model("llama", seed=5), ids), (tiny_seq2seq("t5"), ids), (tiny_seq2seq("whisper"), features)]
expected = [model.generate(inputs, **calls) for model, inputs in models]
original = transformers.GenerationMixin.generate

import unspool.replace_generate

assert transformers.GenerationMixin.generate is not original
for (model, inputs), one in zip(models, expected, strict=True):
    assert model.generate(inputs, **calls).equal(one)
assert models[0][0].generate(ids, custom_generate=unspool.decoding_method, **calls).equal(expected[0])
found = models[0][0].generate(ids, penalty_alpha=0.6, top_k=4, max_new_tokens=6)  # transformers has dropped this
assert found.equal(unspool.generate(models[0][0], ids, penalty_alpha=0.6, top_k=4, max_new_tokens=6))
unspool.replace_generate.undo()
assert transformers.GenerationMixin.generate is original
assert models[0][0].generate(ids, **calls).equal(expected[0])
"""


def test_a_program_runs_on_our_engine_with_one_more_import() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
