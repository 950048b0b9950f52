"""The wrapper of a user's model: one map for all backends, in step with the weights, and gone with the model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import random_source, tiny_seq2seq
from unspool.errors import ModelError
from unspool.protocols import Runtime
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.decoder.model import DecoderModel
from unspool.runtimes.generic.runtime import GenericRuntime
from unspool.runtimes.seq2seq.model import Seq2SeqModel
from unspool.runtimes.wrap.wrapped import WrappedModel, refresh, shared
from unspool.types import Feed, Source

TEXT = (5, 17, 3, 44)

MODELS: dict[str, Callable[[], Any]] = {
    "slot cache": lambda: tiny_model("llama"),
    "own cache": lambda: tiny_model("bloom"),
    "no cache": lambda: tiny_model("openai"),
    "encoder": lambda: tiny_seq2seq("bart"),
}
WRAPPERS = {
    "slot cache": DecoderModel,
    "own cache": WrappedModel,
    "no cache": WrappedModel,
    "encoder": Seq2SeqModel,
}


def next_row(runtime: Runtime, seq: int, source: Source | None) -> torch.Tensor:
    rows = runtime.forward([Feed(seq=seq, tokens=list(TEXT), asked=(len(TEXT) - 1,), source=source)]).logits[0]
    runtime.release(seq)
    return rows


@pytest.mark.usefixtures("packed_layers")
@pytest.mark.parametrize("backend", MODELS)
def test_refresh_reaches_every_backend(backend: str) -> None:
    model = MODELS[backend]()
    source = random_source("bart", 0, 5) if backend == "encoder" else None
    runtime = runtime_of(model, owns_model=False, pack=True)
    before = next_row(runtime, 0, source)
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    refresh(model)
    after = next_row(runtime, 1, source)
    assert not torch.allclose(after, before, atol=1e-3)
    fresh = next_row(runtime_of(model, owns_model=False, pack=False), 0, source)
    torch.testing.assert_close(after, fresh, atol=1e-3, rtol=1e-4)


def test_an_unknown_model_is_refreshed_without_an_error() -> None:
    refresh(tiny_model("gpt2"))


@pytest.mark.parametrize("backend", MODELS)
def test_a_model_has_one_wrapper_per_backend_and_options(backend: str) -> None:
    model, make = MODELS[backend](), WRAPPERS[backend]
    first = shared(model, make, pack="auto")
    assert shared(model, make, pack="auto") is first
    assert shared(model, make, pack=False) is not first


@pytest.mark.parametrize("backend", MODELS)
def test_a_wrapper_does_not_keep_the_users_model_alive(backend: str) -> None:
    model = MODELS[backend]()
    shared(model, WRAPPERS[backend], pack="auto")
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("backend", ["slot cache", "own cache"])
def test_a_wrapper_in_place_is_not_kept(backend: str) -> None:
    model = MODELS[backend]()
    next(model.children())._hf_hook = object()  # accelerate marks modules so
    first = shared(model, WRAPPERS[backend], pack="auto")
    assert first.in_place and shared(model, WRAPPERS[backend], pack="auto") is not first
    alive = weakref.ref(model)
    del model, first
    gc.collect()
    assert alive() is None


def test_a_wrapper_that_cannot_follow_a_change_is_refused_until_the_model_can_run_again() -> None:
    model = tiny_model("llama")
    shared(model, DecoderModel, pack="auto")
    model.config.attention_chunk_size = 4
    for _ in range(2):
        with pytest.raises(ModelError, match="attends in chunks"):
            shared(model, DecoderModel, pack="auto")
    model.config.attention_chunk_size = None
    assert shared(model, DecoderModel, pack="auto").layout


def test_versions_count_changes_of_values_and_parts() -> None:
    model = tiny_model("bloom")
    wrapped = shared(model, WrappedModel, pack="auto")
    wrapped.sync_weights()
    assert (wrapped.builds, wrapped.version) == (1, 0)
    with torch.no_grad():
        next(model.parameters()).mul_(0.5)
    wrapped.sync_weights()
    assert (wrapped.builds, wrapped.version) == (1, 1)
    model.transformer.h[0].mlp.dense_h_to_4h = torch.nn.Linear(32, 128)
    wrapped.sync_weights()
    assert (wrapped.builds, wrapped.version) == (2, 2)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_call_locks_only_an_exclusive_model(exclusive: bool) -> None:
    wrapped = WrappedModel(tiny_model("llama"), owns_model=False, exclusive=exclusive)

    def is_free() -> bool:
        free = wrapped._lock.acquire(blocking=False)
        if free:
            wrapped._lock.release()
        return free

    with ThreadPoolExecutor(1) as other_thread, wrapped.calling():
        assert other_thread.submit(is_free).result(60) is not exclusive


def test_an_own_cache_and_no_cache_share_a_wrapper() -> None:
    model = tiny_model("bloom")
    first, second = (GenericRuntime(model, owns_model=False, use_cache=use_cache) for use_cache in (True, False))
    assert first._wrapped is second._wrapped
    rows = [next_row(each, 0, None) for each in (first, second)]
    torch.testing.assert_close(*rows, atol=1e-4, rtol=1e-4)
