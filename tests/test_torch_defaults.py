"""Process-wide defaults of PyTorch (dtype, device, grad mode, deterministic algorithms) change no token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

import unspool
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool import functional as F

SHAPED: dict[str, Any] = {"temperature": 0.8, "seed": 3}
BEAMS: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2}
RUNS: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "sample": {**SHAPED, "num_return_sequences": 3, "top_p": 0.9, "min_p": 0.01, "xtc_probability": 0.5},
    "entropies": {**SHAPED, "typical_p": 0.9, "epsilon_cutoff": 0.001, "eta_cutoff": 0.001, "top_n_sigma": 2.0},
    "penalties": {
        **SHAPED,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "dry_multiplier": 0.8,
        "dry_sequence_breakers": [1],
    },
    "masks": {
        "suppress_tokens": [1],
        "bad_words_ids": [[4, 5]],
        "sequence_bias": {(7,): 1.5},
        "forced_bos_token_id": 8,
    },
    "beam": BEAMS,
    "beam_sample": {**BEAMS, **SHAPED},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8},
    "constrained_beam": {**BEAMS, "force_words_ids": [[9, 4]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "lookup": {**SHAPED, "prompt_lookup_num_tokens": 3},
    "dola": {"dola_layers": "low"},
    "best_of": {"best_of": 3, **SHAPED},
    "stochastic_beam": {"strategy": "stochastic_beam", **BEAMS, **SHAPED},
    "guided": {"guidance_scale": 1.7, **SHAPED},
}
PROMPTS = [[5, 6, 7, 5, 6], [8, 9]]


@contextmanager
def dtype(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device() -> Iterator[None]:
    """On "meta" no number can be read, so a tensor that lands there is noticed."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


DEFAULTS: dict[str, Any] = {
    "float16": lambda: dtype(torch.float16),
    "bfloat16": lambda: dtype(torch.bfloat16),
    "float64": lambda: dtype(torch.float64),
    "default device": default_device,
    "device context": lambda: torch.device("meta"),
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "deterministic": deterministic,
}


@pytest.fixture(params=DEFAULTS)
def changed(request: pytest.FixtureRequest) -> AbstractContextManager[None]:
    return DEFAULTS[request.param]()  # type: ignore[no-any-return]


def tokens(lm: unspool.LanguageModel, names: Iterable[str] = RUNS) -> dict[str, Any]:
    """Return the tokens of some runs, each run in one batch."""
    found = {}
    for name in names:
        results = lm.generate(PROMPTS, max_new_tokens=6, **RUNS[name])
        found[name] = [completion.token_ids for result in results for completion in result.completions]
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return tokens(unspool.load(tiny_model("llama")))


def test_no_default_changes_a_token_of_any_strategy(
    changed: AbstractContextManager[None], expected: dict[str, Any]
) -> None:
    """The model is made ready under the default as well."""
    model = tiny_model("llama")
    with changed:
        assert tokens(unspool.load(model)) == expected


def test_no_default_changes_a_model_on_transformers_own_cache(changed: AbstractContextManager[None]) -> None:
    lm, names = unspool.load(tiny_model("bloom")), ("sample", "beam", "contrastive")
    plain = tokens(lm, names)
    with changed:
        assert tokens(lm, names) == plain


def test_no_default_changes_a_model_with_an_encoder(changed: AbstractContextManager[None]) -> None:
    lm, source = unspool.load(tiny_seq2seq("t5")), [[5, 6, 7], [4, 9]]
    runs = [{}, SHAPED, BEAMS, {"penalty_alpha": 0.6, "top_k": 4}]
    plain = [[result.completions[0].token_ids for result in lm.generate(source, max_new_tokens=6, **r)] for r in runs]
    with changed:
        found = [
            [result.completions[0].token_ids for result in lm.generate(source, max_new_tokens=6, **r)] for r in runs
        ]
    assert found == plain


def test_no_default_changes_the_drop_in(changed: AbstractContextManager[None]) -> None:
    model, ids = tiny_model("llama"), torch.tensor([[5, 6, 7], [8, 9, 4]])
    runs: list[dict[str, Any]] = [{"do_sample": True, "seed": 3}, {"num_beams": 3}]
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    plain = [unspool.generate(model, ids, **options, **each) for each in runs]
    with changed:
        found = [unspool.generate(model, ids, **options, **each) for each in runs]
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one.sequences, other.sequences)
        assert all(
            torch.equal(*pair) and pair[0].dtype == torch.float32 for pair in zip(one.scores, other.scores, strict=True)
        )


def test_no_default_changes_what_is_asked_of_a_model_or_of_functions(changed: AbstractContextManager[None]) -> None:
    lm, logits = unspool.load(tiny_model("llama")), torch.linspace(-2, 2, 40).view(2, 20)

    def asked() -> tuple[Any, ...]:
        return (
            lm.score([5, 6], [7, 8]).logprobs,
            lm.next_tokens([5, 6], top_k=5).to_dict(),
            F.sample(logits, seed=1, position=3).tolist(),
            F.top_p(F.temperature(logits, 0.7), 0.8).tolist(),
            F.greedy(F.repetition_penalty(logits, torch.tensor([[1, 19], [3, 2]], device="cpu"), 1.5)).tolist(),
        )

    plain = asked()
    with changed:
        assert asked() == plain
