"""Errors on the command line speak of flags: no name, value or advice in Python's spelling is left."""

import re

import pytest

from unspool.cli.spelling import FLAGS, KEYS, SETTINGS, spelled
from unspool.config import OPTIONS, REFUSED, STRATEGIES
from unspool.errors import OptionError, PromptError
from unspool.options.order import PROCESSOR_ORDER

NAMES = {name for name in OPTIONS if "_" in name}
WORDS = {*STRATEGIES, *PROCESSOR_ORDER, "top_k", "top_p", "min_p"}  # values of options, spelled alike everywhere

# Each provokes another error of the library, or another way to advise.
CALLS = [
    "--top-p 1.5",
    "--top-k -1",
    "--temperature -1",
    "--max-new-tokens 0",
    "--max-time 0",
    "--min-p 2",
    "--eta-cutoff 1",
    "--top-n-sigma 0",
    "--repetition-penalty 0",
    "--length-penalty nan",
    "--strategy nope",
    "--early-stopping sometimes",
    "--num-assistant-tokens-schedule x",
    "--dola-layers middle",
    "--force-words-ids [[null]]",
    "--sequence-bias [[1]]",
    "--bad-words-ids [[]]",
    "--exponential-decay-length-penalty 3",
    "--processor-order top_p,nope",
    "--stop-strings ''",
    "--force-words ''",
    "--dry-sequence-breakers ''",
    "--eos-token-id a",
    "--logprobs -1 --json",
    "--logprobs 2",
    "--do-sample --no-do-sample",
    "--max-length 3 --max-new-tokens 4",
    "--min-length 3 --min-new-tokens 4",
    "--min-new-tokens 5 --max-new-tokens 4",
    "--temperature 0.8 --no-do-sample",
    "--top-p 0.9 --strategy greedy",
    "--top-p 0.9 --temperature 0",
    "--top-p 0.9 --strategy contrastive --penalty-alpha 0.5 --top-k 3",
    "--num-return-sequences 2",
    "--num-return-sequences 2 --prompt-lookup-num-tokens 3",
    "--length-penalty 2",
    "--length-penalty 2 --do-sample",
    "--lookahead-steps 2 --strategy greedy",
    "--diversity-penalty 0.5",
    "--penalty-alpha 0.5 --do-sample",
    "--strategy contrastive --do-sample",
    "--strategy sample --no-do-sample",
    "--strategy best_of --best-of 3 --temperature 0",
    "--strategy beam",
    "--strategy sample --temperature 0 --top-k 3",
    "--strategy diverse_beam --num-beams 4",
    "--strategy constrained_beam --num-beams 4",
    "--strategy contrastive",
    "--strategy assisted",
    "--strategy dola",
    "--strategy best_of",
    "--strategy stochastic_beam",
    "--force-words fox",
    "--num-beams 2 --num-return-sequences 3",
    "--num-beams 4 --num-beam-groups 3 --diversity-penalty 0.5",
    "--num-beams 4 --num-beam-groups 2",
    "--best-of 2 --num-return-sequences 3",
    "--dry-base 2",
    "--penalty-scope output",
    "--xtc-threshold 0.3 --do-sample",
    "--negative-prompt dull",
    "--num-assistant-tokens 3 --prompt-lookup-num-tokens 3",
    "--max-matching-ngram-size 3",
    "--force-words-ordered --num-beams 2",
    "--suppress-tokens 5 --forced-eos-token-id 5",
    "--eos-token-id 999999",
    "--bad-words-ids [[999999]]",
    "--sequence-bias [[[999999],1.0]]",
    "--begin-suppress-tokens 999999",
    "--dola-layers [99]",
    "--num-beams 2 --force-words-ids [[999999]]",
    "--num-beams 2 --force-words fox,forest --max-new-tokens 1",
    "--max-length 1",
    "--guidance-scale 2 --negative-prompt '' --echo --logprobs 2",
    "--decoder-start-token-id 3,4",
    "--exponential-decay-length-penalty [3,2.0] --ignore-eos",
]


@pytest.mark.model
@pytest.mark.usefixtures("loads_tale")
@pytest.mark.parametrize("arguments", CALLS)
def test_no_error_of_a_call_is_in_pythons_spelling(run, arguments: str):
    import shlex

    done = run("generate", "Once upon a time", *shlex.split(arguments))
    assert (done.status, done.out) == (2, ""), done
    assert done.err.startswith("Error: --")
    assert pythonic(done.err) == []


def pythonic(text: str) -> list[str]:
    """Return what a text has in Python's spelling."""
    names = [name for name in re.findall(r"(?<![-\w])\w+", text) if name in NAMES - WORDS]
    return names + re.findall(r"`|\b[a-z]\w*=|\bNone\b|\bTrue\b|\bFalse\b|\(\d+, \d+\)", text)


@pytest.mark.parametrize("name", [option.name for option in OPTIONS.values() if option.door != "drop_in"])
def test_the_advice_of_every_option_is_spelled(name: str):
    row = OPTIONS[name]
    for given in ("x", None, True, (1, 2)):
        error = OptionError(name, given, row.range, row.advice)
        assert pythonic(spelled(error)) == []
        assert not re.search(r"`|\bNone\b|\bTrue\b|\bFalse\b", spelled(error, KEYS))
        assert not re.search(r"\bNone\b|\bTrue\b|\bFalse\b", spelled(error, SETTINGS))


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_option_of_a_stored_config_says_where_it_stands(name: str):
    reason = f"stands in the model's stored config and {REFUSED[name].reason}"
    message = spelled(OptionError(name, {}, reason, REFUSED[name].remedy))
    assert message.endswith("take it out of the model's generation_config.json")


@pytest.mark.parametrize(
    ("hint", "flags", "keys", "settings"),
    [
        ("use None for no limit", "leave it out for no limit", "use null for no limit", "use off for no limit"),
        ("use 0 or None for all", "use 0 or leave it out for all", "use 0 or null for all", "use 0 or off for all"),
        ("set `do_sample=True`", "set --do-sample", 'set "do_sample": true', "set do_sample true"),
        ("set do_sample=False", "set --no-do-sample", 'set "do_sample": false', "set do_sample off"),
        ("with `top_h=None`", "with a value for --top-h", 'with "top_h": null', "with top_h off"),
        ("with `top_k=5`", "with --top-k 5", 'with "top_k": 5', "with top_k 5"),
        ("raise `num_beams`", "raise --num-beams", 'raise "num_beams"', "raise num_beams"),
        ("'None' and 'top_k=5'", "'None' and 'top_k=5'", "'None' and 'top_k=5'", "'None' and 'top_k=5'"),
        (
            "give `tokenizer=` to load()",
            "give --tokenizer",
            "give `tokenizer=` to load()",
            "give `tokenizer=` to load()",
        ),
    ],
)
def test_hints(hint: str, flags: str, keys: str, settings: str):
    error = OptionError("top_p", 2.0, "must be less", hint)
    assert spelled(error, FLAGS) == f"--top-p must be less, got 2.0; {flags}"
    assert spelled(error, KEYS) == f'"top_p" must be less, got 2.0; {keys}'
    assert spelled(error, SETTINGS) == f"top_p must be less, got 2.0; {settings}"


def test_other_errors_have_their_options_spelled_and_nothing_else():
    error = PromptError("`num_beams` is None; give `tokenizer=` to load(), or `input_ids` for 'top_k'")
    assert spelled(error) == "--num-beams is None; give --tokenizer, or `input_ids` for 'top_k'"
