"""What may draft for a model: the kinds accepted, whether it speaks the same tokens, and that it changes no output."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import unspool
from tests.sampling import sampled
from tests.text.tokenizers import byte_fallback, byte_level
from tests.threads import one_thread as one_thread
from tests.tiny_models import VOCAB_SIZE, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from tests.toys import mixing_toy
from unspool import LanguageModel
from unspool.assistants import Assistant, check_vocabulary, read_assistant
from unspool.errors import OptionError
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.toy import ToyRuntime

PROMPT = [5, 7, 11, 13]


@cache
def target(family: str = "llama", vocab_size: int = VOCAB_SIZE) -> PreTrainedModel:
    return tiny_model(family, seed=2, vocab_size=vocab_size)


@cache
def similar(family: str = "llama") -> PreTrainedModel:
    """A model that mostly agrees with `target`."""
    model = copy.deepcopy(target(family))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return model


def stranger(vocab_size: int = VOCAB_SIZE) -> PreTrainedModel:
    return tiny_model("gpt2", seed=9, vocab_size=vocab_size)


def refusal(lm: LanguageModel, assistant: Any, **options: Any) -> OptionError:
    with pytest.raises(OptionError) as caught:
        lm.generate(PROMPT, assistant_model=assistant, max_new_tokens=4, **options)
    assert lm.engine.idle
    return caught.value


# --- kinds --------------------------------------------------------------------------------------------------------


def test_a_language_model_a_runtime_and_a_transformers_model_are_drafts() -> None:
    runtime = mixing_toy()
    lm = LanguageModel(runtime, byte_level())
    assert read_assistant(None) is None
    assert read_assistant(lm) == Assistant(runtime, lm.tokenizer)
    assert read_assistant(runtime) == Assistant(runtime, None)
    found, again = read_assistant(similar()), read_assistant(similar())
    assert found is not None and again is not None
    assert isinstance(found.runtime, DecoderRuntime) and found.tokenizer is None
    assert found.runtime is again.runtime, "the work on a model is done once"


NO_DRAFTS = ["gpt2", 3, object(), byte_level, [mixing_toy()], torch.nn.Linear(2, 2), tiny_model("llama").base_model]


@pytest.mark.parametrize("given", NO_DRAFTS, ids=lambda given: type(given).__name__)
def test_anything_else_is_refused_by_its_type(given: Any) -> None:
    error = refusal(unspool.load(target()), given)
    assert (error.option, error.given) == ("assistant_model", type(given).__name__)
    assert "must be a LanguageModel, a Runtime, or a loaded transformers model" in str(error)


# --- tokens -------------------------------------------------------------------------------------------------------


def words(*texts: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({text: index for index, text in enumerate(texts)}, unk_token=texts[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=texts[0])


OURS = ("?", "king", "queen", "fox")


def of_size(size: int, name: str = "draft") -> ToyRuntime:
    return ToyRuntime(lambda tokens: [1.0] * size, size)


@pytest.mark.parametrize("size", [3, 4, 64])
def test_the_same_tokenizer_may_be_padded_to_any_size(size: int) -> None:
    ours = words(*OURS)
    for theirs in (ours, words(*OURS), copy.deepcopy(ours)):
        check_vocabulary(Assistant(of_size(size), theirs), ours, 4)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (("?", "king", "ox", "fox"), "token 2 is 'queen' to the model and 'ox' to the draft model"),
        (("?", "king", "queen", "owl"), "token 3 is 'fox' to the model and 'owl' to the draft model"),
        (("?", "king", "queen"), "token 3 is 'fox' to the model and None to the draft model"),
        ((*OURS, "owl"), "with 4 tokens, and has one with 5"),
    ],
)
def test_other_tokens_are_refused_with_one_that_differs(theirs: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_vocabulary(Assistant(of_size(4), words(*theirs)), words(*OURS), 4)
    assert caught.value.option == "assistant_model"
    assert message in str(caught.value) and "prompt_lookup_num_tokens" in str(caught.value)


def test_a_token_added_later_is_seen() -> None:
    ours, theirs = words(*OURS), words(*OURS)
    draft = Assistant(of_size(4), theirs)
    check_vocabulary(draft, ours, 4)
    ours.add_tokens(["owl"])
    with pytest.raises(OptionError, match="token 4 is 'owl' to the model and None to the draft model"):
        check_vocabulary(draft, ours, 4)
    theirs.add_tokens(["owl"])
    check_vocabulary(draft, ours, 4)


@pytest.mark.parametrize(("mine", "its"), [(None, None), (None, words(*OURS)), (words(*OURS), None)])
def test_without_both_tokenizers_the_sizes_must_agree(mine: Any, its: Any) -> None:
    check_vocabulary(Assistant(of_size(4), its), mine, 4)
    with pytest.raises(OptionError, match="must have the model's own vocabulary of 4 tokens, and has 5"):
        check_vocabulary(Assistant(of_size(5), its), mine, 4)


class Unordered:
    """A tokenizer's vocabulary in an order of its own, as the fast ones give it."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def get_vocab(self) -> dict[str, int]:
        return {text: token for token, text in reversed([*enumerate(self._texts)])}

    def __len__(self) -> int:
        return len(self._texts)


def test_the_first_token_is_the_one_of_the_lowest_id() -> None:
    with pytest.raises(OptionError, match="token 1 is 'king' to the model and 'fox' to the draft model"):
        check_vocabulary(Assistant(of_size(3), Unordered("?", "fox", "king")), Unordered("?", "king", "fox"), 3)


class Plain:
    """A tokenizer with nothing but what `LanguageModel` asks of one."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 17 for letter in text]}

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(chr(97 + token) for token in ids)


def test_tokenizers_that_name_no_tokens_are_compared_by_the_models_sizes() -> None:
    same = Plain()
    check_vocabulary(Assistant(of_size(5), same), same, 4)
    check_vocabulary(Assistant(of_size(4), Plain()), Plain(), 4)
    with pytest.raises(OptionError, match="vocabulary of 4 tokens, and has 5"):
        check_vocabulary(Assistant(of_size(5), Plain()), Plain(), 4)


def test_a_language_model_of_another_tokenizer_is_refused_at_the_door() -> None:
    lm = unspool.load(target(vocab_size=420), tokenizer=byte_level())
    draft = unspool.load(stranger(vocab_size=len(byte_fallback())), tokenizer=byte_fallback())
    error = refusal(lm, draft)
    assert error.option == "assistant_model" and error.given == draft.info.name
    assert "to the draft model" in str(error)


def test_a_transformers_model_of_another_size_is_refused_at_both_doors() -> None:
    lm = unspool.load(target())
    assert "vocabulary of 97 tokens, and has 80" in str(refusal(lm, stranger(80)))
    with pytest.raises(OptionError, match="vocabulary of 97 tokens, and has 80"):
        unspool.generate(target(), torch.tensor([PROMPT]), assistant_model=stranger(80), max_new_tokens=4)


def test_a_draft_model_that_needs_a_source_is_refused_at_the_door() -> None:
    """One with an encoder has nothing to read beside a model that has none."""
    error = refusal(unspool.load(target()), tiny_seq2seq("t5"))
    assert error.option == "assistant_model"


def test_models_of_one_tokenizer_and_different_padding_draft_for_each_other() -> None:
    lm = unspool.load(target(vocab_size=450), tokenizer=byte_level())
    plain = lm.generate("Once upon", max_new_tokens=12, batch_invariant=True)
    for size in (420, 512):
        draft = unspool.load(tiny_model("llama", seed=2, vocab_size=size), tokenizer=byte_level())
        found = lm.generate("Once upon", assistant_model=draft, max_new_tokens=12, batch_invariant=True)
        assert found.text == plain.text and found.strategy == "assisted"
        assert draft.engine.idle


# --- the output ---------------------------------------------------------------------------------------------------

SAMPLING: dict[str, Any] = {"do_sample": True, "seed": 11, "temperature": 0.9, "top_k": 20, "num_return_sequences": 3}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalized": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "sampled": SAMPLING,
}


@pytest.mark.parametrize(("family", "way"), sampled([(family, way) for family in ("llama", "gpt2") for way in WAYS], 3))
def test_a_draft_model_changes_no_token(family: str, way: str) -> None:
    lm = unspool.load(target(family))
    options = {"max_new_tokens": 16, "batch_invariant": True} | WAYS[way]
    plain = lm.generate(PROMPT, **options)
    for draft in (similar(family), unspool.load(similar(family)), read_assistant(similar(family)).runtime, stranger()):  # type: ignore[union-attr]
        before = lm.engine.timing.passes
        found = lm.generate(PROMPT, assistant_model=draft, **options)
        assert tokens_of(found) == tokens_of(plain)
        assert found.strategy == "assisted"
        saved = 16 - (lm.engine.timing.passes - before)
        assert saved > 2 if draft is similar(family) else saved >= 0


def tokens_of(generation: Any) -> list[tuple[tuple[int, ...], str]]:
    return [(each.token_ids, each.finish_reason) for each in generation.completions]


@pytest.mark.parametrize("way", WAYS)
def test_the_drop_in_writes_the_same_with_a_draft_model(way: str) -> None:
    model = target("gpt2")
    ids = torch.tensor([[0, 0, *PROMPT], [3, 9, *PROMPT]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    options = {"max_new_tokens": 12, "batch_invariant": True, "pad_token_id": 0} | WAYS[way]
    plain = unspool.generate(model, ids, attention_mask=mask, **options)
    found = unspool.generate(model, ids, attention_mask=mask, assistant_model=similar("gpt2"), **options)
    assert torch.equal(found, plain)  # type: ignore[arg-type]


def test_the_drop_in_and_transformers_own_assisted_decoding_write_the_same() -> None:
    model, draft = target(), similar()
    ids = torch.tensor([PROMPT])
    own = model.generate(
        ids, attention_mask=torch.ones_like(ids), assistant_model=draft, max_new_tokens=20, do_sample=False
    )
    assert torch.equal(unspool.generate(model, ids, assistant_model=draft, max_new_tokens=20), own)  # type: ignore[arg-type]


def test_a_training_step_of_the_draft_between_two_calls_is_seen() -> None:
    lm, draft = unspool.load(target()), copy.deepcopy(target())
    options: dict[str, Any] = {"max_new_tokens": 20, "assistant_model": draft, "ignore_eos": True}
    options |= {"assistant_confidence_threshold": 0.0}
    first = lm.generate(PROMPT, **options)
    passes = lm.engine.timing.passes
    with torch.no_grad():
        draft.get_output_embeddings().weight.neg_()
    second = lm.generate(PROMPT, **options)
    assert tokens_of(first) == tokens_of(second)
    assert passes <= 6 and lm.engine.timing.passes - passes >= 15, "what always held never holds"


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"strategy": "greedy"},
        {"num_beams": 2, "force_words_ids": [[3]]},
    ],
)
def test_strategies_that_draft_nothing_refuse_a_draft_model(options: dict[str, Any]) -> None:
    error = refusal(unspool.load(target()), similar(), **options)
    assert error.option == "assistant_model" and "is not read by the strategy" in str(error)
    with pytest.raises(OptionError, match="`assistant_model` is not read by the strategy"):
        unspool.generate(
            target(), torch.tensor([PROMPT]), assistant_model=similar(), max_new_tokens=4, strict=True, **options
        )


def test_one_way_of_drafting_at_a_time() -> None:
    error = refusal(unspool.load(target()), similar(), prompt_lookup_num_tokens=3)
    assert error.option == "prompt_lookup_num_tokens" and "together with an assistant model" in str(error)


def test_another_tokenizers_draft_model_is_refused_by_its_own_name() -> None:
    with pytest.raises(OptionError, match="`assistant_tokenizer`"):
        unspool.generate(
            target(),
            torch.tensor([PROMPT]),
            assistant_model=similar(),
            assistant_tokenizer=byte_level(),
            tokenizer=None,
        )
