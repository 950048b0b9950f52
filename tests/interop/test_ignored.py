"""Options that the chosen strategy does not read: ignored with one warning at transformers' doors, or an error."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.config.test_generation import NUMBERS
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from unspool.config import OPTIONS, resolve
from unspool.errors import OptionError

MODEL = tiny_model("llama", seed=5)
SPEAKER = unspool.load(tiny_model("llama", vocab_size=420, seed=5), tokenizer=byte_level())
IDS = torch.tensor([[11, 12, 13], [21, 22, 23]])

# options: the names that have no effect
UNREAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"temperature": 0.7}, ["temperature"]),
    ({"temperature": 0.7, "top_p": 0.5, "length_penalty": 2.0, "early_stopping": True}, []),
    ({"num_beams": 2, "penalty_alpha": 0.6}, ["penalty_alpha"]),
    ({"output_scores": True}, ["output_scores"]),
    ({"do_sample": True, "seed": 3, "diversity_penalty": 0.5}, ["diversity_penalty"]),
    ({"dry_base": 2.0, "repetition_penalty": 1.3}, ["dry_base"]),
]


def caught(door: Any, *args: Any, **options: Any) -> tuple[Any, list[warnings.WarningMessage]]:
    """Return the result of a call, and the warnings about ignored options."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = door(*args, **options)
    return result, [each for each in found if "are ignored" in str(each.message)]


@pytest.mark.parametrize(("options", "names"), UNREAD, ids=str)
def test_one_warning_names_all_unread_options_and_the_tokens_are_those_without_them(
    options: dict[str, Any], names: list[str]
) -> None:
    names = names or list(options)
    found, (warning,) = caught(unspool.generate, MODEL, IDS, max_new_tokens=6, **options)
    rest = {name: value for name, value in options.items() if name not in names}
    assert found.equal(unspool.generate(MODEL, IDS, max_new_tokens=6, **rest))
    assert warning.category is UserWarning and warning.filename == __file__
    message = str(warning.message)
    assert all(f"`{name}` is" in message for name in names) and "strict=True" in message
    assert ", ".join(f"`{name}`" for name in OPTIONS if name in names) in message.rpartition("leave out ")[2]


@pytest.mark.parametrize(("options", "names"), UNREAD, ids=str)
def test_strict_raises_the_error_of_the_first_one(options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        unspool.generate(MODEL, IDS, strict=True, max_new_tokens=2, **options)
    assert error.value.option in (names or options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 9},
        {"num_beams": 2, "temperature": 0.7},
        {"early_stopping": True},
        {"output_scores": True},
        {"generation_config": transformers.GenerationConfig(top_p=0.5, max_new_tokens=4, eos_token_id=2)},
    ],
    ids=str,
)
def test_a_call_that_transformers_accepts_gives_its_tokens(options: dict[str, Any]) -> None:
    rest = {"pad_token_id": 1} if "generation_config" in options else {"pad_token_id": 1, "max_new_tokens": 6}
    found, ignored = caught(unspool.generate, MODEL, IDS, **rest, **options)
    expected, _ = caught(MODEL.generate, IDS, **rest, **options)
    assert len(ignored) == 1 and found.equal(expected)


def test_a_draft_model_that_beams_do_not_read_is_ignored() -> None:
    options = {"num_beams": 2, "max_new_tokens": 6}
    draft = tiny_model("llama", seed=6)
    found, (warning,) = caught(unspool.generate, MODEL, IDS, assistant_model=draft, **options)
    assert "`assistant_model`" in str(warning.message) and found.equal(unspool.generate(MODEL, IDS, **options))
    with pytest.raises(OptionError, match="assistant_model"):
        unspool.generate(MODEL, IDS, assistant_model=draft, strict=True, **options)


def test_the_decoding_method_warns_at_the_call_of_transformers_generate() -> None:
    options = {"custom_generate": unspool.decoding_method, "max_new_tokens": 6}
    found, (warning,) = caught(lambda: MODEL.generate(IDS, temperature=0.7, **options))
    assert warning.filename == __file__ and "`temperature`" in str(warning.message)
    assert found.equal(MODEL.generate(IDS, **options))
    with warnings.catch_warnings(), pytest.raises(OptionError, match="temperature"):
        warnings.simplefilter("ignore")
        MODEL.generate(IDS, temperature=0.7, strict=True, **options)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences"),  # transformers refuses it as well
        ({"logprobs": 2}, "logprobs"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"strict": "yes"}, "strict"),
    ],
    ids=str,
)
def test_other_errors_stay(options: dict[str, Any], option: str) -> None:
    with pytest.raises(OptionError) as error:
        unspool.generate(MODEL, IDS, max_new_tokens=2, **options)
    assert error.value.option == option


@pytest.mark.parametrize("drop_in", [True, False], ids=["drop-in", "native"])
@pytest.mark.parametrize("name", NUMBERS)
def test_an_ignored_option_leaves_every_other_option_as_it_is(name: str, drop_in: bool) -> None:
    plain = resolve({"do_sample": False}, drop_in=drop_in)
    for value in NUMBERS[name][0]:
        call = {"do_sample": False, name: value}
        ignored: list[OptionError] = []
        try:
            resolve(call, drop_in=drop_in)
        except OptionError as error:
            if name == "num_return_sequences" or "read" not in error.allowed:
                with pytest.raises(OptionError, match=name):
                    resolve(call, drop_in=drop_in, ignored=ignored)
                continue
            found = resolve(call, drop_in=drop_in, ignored=ignored)
            assert [str(each) for each in ignored] == [str(error)]
            assert all(getattr(found, each) == getattr(plain, each) for each in OPTIONS)
            assert not found.requested - plain.requested
        else:
            resolve(call, drop_in=drop_in, ignored=ignored)
            assert not ignored


def test_a_pipeline_warns_once_per_call_and_gives_the_records_without_the_option() -> None:
    options = {"do_sample": False, "max_new_tokens": 4}
    pipe, made = caught(unspool.pipeline, "text-generation", SPEAKER, top_p=0.5, **options)
    expected = unspool.pipeline("text-generation", SPEAKER, **options)(["one", "two"])
    found, (warning,) = caught(pipe, ["one", "two"])
    assert not made and found == expected
    assert warning.filename == __file__ and "`top_p`" in str(warning.message)
    config = unspool.GenerationConfig(top_k=7, **options)
    plain = unspool.pipeline("text-generation", SPEAKER)
    found, (warning,) = caught(plain, ["one", "two"], generation_config=config, typical_p=0.5)
    assert found == expected and all(f"`{name}`" in str(warning.message) for name in ("top_k", "typical_p"))
    assert list(caught(lambda: list(pipe(iter(["one", "two"]))))[0]) == expected


def test_a_strict_pipeline_raises_when_it_is_made_and_when_it_is_called() -> None:
    with pytest.raises(OptionError, match="top_p"):
        unspool.pipeline("text-generation", SPEAKER, do_sample=False, top_p=0.5, strict=True)
    pipe = unspool.pipeline("text-generation", SPEAKER, do_sample=False, max_new_tokens=2)
    with pytest.raises(OptionError, match="top_p"):
        pipe("one", top_p=0.5, strict=True)
    with pytest.raises(OptionError, match="`strict` must be True or False"):
        pipe("one", strict=1)


def test_the_native_api_stays_strict() -> None:
    with pytest.raises(OptionError, match="top_p"):
        SPEAKER.generate("one", do_sample=False, top_p=0.5)
