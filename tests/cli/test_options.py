"""Every option of the table is a flag, in its group, with a value of its own type."""

import inspect

import pytest

from tests.cli.fakes import FakeModel
from unspool.cli.generate import generate
from unspool.cli.next import next_tokens
from unspool.cli.options import flag_of, generation_options, help_of
from unspool.config import OPTIONS

OFFERED = [option for option in OPTIONS.values() if option.door != "drop_in"]


def test_every_option_of_the_native_api_is_offered_once_and_no_other():
    names = [option.name for option in generation_options()]
    assert sorted(names) == sorted(option.name for option in OFFERED)
    assert len(names) > 50


@pytest.mark.parametrize("command", [generate, next_tokens])
def test_an_option_has_no_default_of_its_own_on_the_command_line(command):
    parameters = inspect.signature(command).parameters
    for option in OFFERED:
        assert parameters[option.name].default in (None, False)


def test_help_speaks_of_flags_not_of_python_names():
    assert "--max-new-tokens" in help_of(OPTIONS["max_length"])
    assert "`max_new_tokens`" not in help_of(OPTIONS["max_length"])


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--temperature", "0.8", "--top-p", "0.9"], {"temperature": 0.8, "top_p": 0.9}),
        (["--max-new-tokens", "5", "--seed", "-3"], {"max_new_tokens": 5, "seed": -3}),
        (["--do-sample"], {"do_sample": True}),
        (["--no-do-sample"], {"do_sample": False}),
        (["--stop-strings", "end", "--stop-strings", "."], {"stop_strings": ("end", ".")}),
        (["--suppress-tokens", "4", "--suppress-tokens", "5"], {"suppress_tokens": (4, 5)}),
        (["--processor-order", "top_p", "--processor-order", "top_k"], {"processor_order": ("top_p", "top_k")}),
        (["--bad-words-ids", "[[5], [7, 9]]"], {"bad_words_ids": ((5,), (7, 9))}),
        (["--sequence-bias", "[[[5, 7], -2.0]]"], {"sequence_bias": (((5, 7), -2.0),)}),
        (["--stop-strings", '["end", "."]', "--stop-strings", "a, b"], {"stop_strings": ("end", ".", "a, b")}),
        (["--stop-strings", "[1]"], {"stop_strings": ("[1]",)}),
        (["--stop-strings", '["open'], {"stop_strings": ('["open',)}),
        (["--suppress-tokens", "4,5"], {"suppress_tokens": (4, 5)}),
        (["--suppress-tokens", "[4, 5]", "--suppress-tokens", "6"], {"suppress_tokens": (4, 5, 6)}),
        (["--processor-order", "top_p,top_k"], {"processor_order": ("top_p", "top_k")}),
        (["--force-words", "fox,forest"], {"force_words": ("fox", "forest")}),
        (["--force-words", "fox", "--force-words", "the den, forest"], {"force_words": ("fox", "the den", "forest")}),
        (["--force-words", '["so, then", ["fox", "vixen"]]'], {"force_words": ("so, then", ("fox", "vixen"))}),
        (["--dry-sequence-breakers", ",", "--dry-sequence-breakers", ";"], {"dry_sequence_breakers": (",", ";")}),
        (["--dry-sequence-breakers", '["\\n", 13, [5, 7]]'], {"dry_sequence_breakers": ("\n", 13, (5, 7))}),
        (["--negative-prompt", "dull, sad"], {"negative_prompt": "dull, sad"}),
        (["--early-stopping", "never"], {"early_stopping": "never"}),
        (["--early-stopping", "true"], {"early_stopping": True}),
        (["--strategy", "greedy"], {"strategy": "greedy"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_given_reaches_the_model_and_nothing_else(run, use, arguments: list[str], options: dict):
    model = use(FakeModel())
    assert run("generate", "Once", *arguments).status == 0
    ((_, _, received),) = model.calls
    assert received == options or {k: _plain(v) for k, v in received.items()} == options


def _plain(value):
    return tuple(value.items()) if hasattr(value, "items") else value


@pytest.mark.parametrize("option", [o for o in OFFERED if o.cli_type == "bool"], ids=lambda option: option.name)
def test_every_switch_has_both_forms(run, use, option):
    for flag, value in ((flag_of(option), True), (f"--no-{flag_of(option)[2:]}", False)):
        model = use(FakeModel())
        assert run("generate", "Once", "--json", flag).status == 0
        assert model.calls[0][2] == {option.name: value}


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--stop-strings", '["a", 1]', "must be a non-empty string or a list of non-empty strings"),
        ("--stop-strings", "", "must be a non-empty string or a list of non-empty strings"),
        ("--force-words", "fox,,forest", "must be a non-empty text, or a list of non-empty texts"),
        ("--force-words", '["fox", 3]', "must be a non-empty text, or a list of non-empty texts"),
        ("--suppress-tokens", "4,x", "must be a token id or a list of token ids"),
        ("--suppress-tokens", "-4", "must be a token id or a list of token ids"),
    ],
)
def test_a_list_with_a_wrong_value_is_told(run, use, flag: str, value: str, message: str):
    use(FakeModel())
    done = run("generate", "Once", flag, value)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"Error: {flag} {message}")


def test_a_wrong_value_is_told_before_the_model_is_loaded(run, use):
    model = use(FakeModel())
    assert run("generate", "Once", "--top-p", "1.5").status == 2
    assert not hasattr(model, "loaded")
