"""One engine for each model: shared by calls and threads, renewed with the tensors of the model, and freed with it."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.tiny_models import VOCAB_SIZE, tiny_config, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.engines import driver_of
from unspool.errors import ModelError, PromptError

PROMPT = torch.tensor([[5, 6, 7]])


def test_calls_on_one_model_share_an_engine_and_models_do_not():
    first, second = tiny_model("llama"), tiny_model("llama")
    assert driver_of(first) is driver_of(first)
    assert driver_of(first) is not driver_of(second)


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba"])
def test_a_model_and_its_engine_are_freed_together(family: str):
    model = tiny_model(family)
    unspool.generate(model, PROMPT, max_new_tokens=3)
    kept = weakref.ref(model), weakref.ref(driver_of(model))
    del model
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_an_encoder_decoder_that_runs_in_place_is_freed():
    model = tiny_seq2seq("bart")
    model.lock = threading.Lock()  # cannot be copied
    unspool.generate(model, PROMPT, max_new_tokens=3)
    assert driver_of(model).engine.runtime.in_place
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


def test_a_training_step_between_calls_is_seen_on_the_same_engine():
    model = tiny_model("llama")
    before, driver = unspool.generate(model, PROMPT, max_new_tokens=8), driver_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=PROMPT, labels=PROMPT).loss.backward()
    optimizer.step()
    after = unspool.generate(model, PROMPT, max_new_tokens=8)
    assert driver_of(model) is driver
    assert not after.equal(before)
    assert after.equal(model.generate(PROMPT, max_new_tokens=8))


def test_a_larger_vocabulary_is_a_new_engine():
    model = tiny_model("llama")
    prompt = torch.tensor([[5, VOCAB_SIZE + 1]])
    with pytest.raises(PromptError, match="vocabulary"):
        unspool.generate(model, prompt, max_new_tokens=3)
    model.resize_token_embeddings(VOCAB_SIZE + 4, mean_resizing=False)
    assert unspool.generate(model, prompt, max_new_tokens=3).equal(model.generate(prompt, max_new_tokens=3))


def test_threads_share_the_engine_and_get_their_own_answers():
    model = tiny_model("llama")
    prompts = [torch.randint(3, VOCAB_SIZE, (2, 3 + index)) for index in range(8)]
    alone = [unspool.generate(model, prompt, max_new_tokens=12, pad_token_id=0) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda ids: unspool.generate(model, ids, max_new_tokens=12, pad_token_id=0), prompts)
        assert all(found.equal(one) for found, one in zip(together, alone, strict=True))


def test_nothing_is_left_behind_by_calls_that_end_well_or_badly():
    model = tiny_model("llama")
    unspool.generate(model, PROMPT, max_new_tokens=3)
    with pytest.raises(PromptError):
        unspool.generate(model, torch.tensor([[5, 6], [5, VOCAB_SIZE]]), max_new_tokens=3)
    engine = driver_of(model).engine
    engine.check()
    assert engine.idle


def test_a_model_that_cannot_run_is_refused():
    headless = transformers.AutoModel.from_config(tiny_config("llama"))
    for model in (torch.nn.Linear(2, 2), unspool.ToyRuntime({0: [1.0]}, 1), headless):
        with pytest.raises(ModelError):
            unspool.generate(model, PROMPT)


def test_an_encoder_of_another_kind_is_refused_by_name():
    """Moonshine reads samples as they are."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": VOCAB_SIZE}
    heads = {
        f"{part}_num_{what}": 1 for part in ("encoder", "decoder") for what in ("hidden_layers", "attention_heads")
    }
    model = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**sizes, **heads))
    with pytest.raises(ModelError, match="reads `input_values`: not supported"):
        unspool.generate(model, PROMPT)


@pytest.mark.parametrize("family", ["bloom", "mamba", "openai"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_models_without_a_slot_cache_run_too(family: str, options: dict[str, Any]):
    model = tiny_model(family, seed=3)
    options = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, **options}
    assert unspool.generate(model, PROMPT, **options).equal(model.generate(PROMPT, **options))
