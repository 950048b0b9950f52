"""The pipeline "text-generation" gives what transformers' own gives: the same shapes, and greedily the same text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers.pipelines.pt_utils import KeyDataset

import unspool
from tests.sampling import sampled
from tests.speakers import recite
from unspool import OptionError, PromptError
from unspool.pipelines.tasks import TASKS

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}
HELLO = [{"role": "user", "content": "Tell me of a king."}]
BEGUN = [*HELLO, {"role": "assistant", "content": "There was"}]
LONG = "The king and the queen went into the wood. " * 4

pytestmark = [
    pytest.mark.model,
    # Said by transformers' pipeline of its own ways.
    pytest.mark.filterwarnings("ignore:.*max_new_tokens.*"),
]

INPUTS: dict[str, Any] = {
    "a text": "Once upon",
    "an empty text": "",
    "a list": ["Once upon", "The king and the old woman"],
    "a list of one": ["Once upon"],
    "a conversation": HELLO,
    "conversations": [HELLO, [{"role": "system", "content": "Be brief."}, *HELLO]],
    "a begun answer": BEGUN,
    "begun and not": [BEGUN, HELLO],
}

CALLS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "new text alone": {**GREEDY, "return_full_text": False},
    "full text": {**GREEDY, "return_full_text": True},
    "ids": {**GREEDY, "return_tensors": True},
    "beams": {**GREEDY, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "penalties": {**GREEDY, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "whole length": {"do_sample": False, "max_length": 36},
    "least length": {"do_sample": False, "max_new_tokens": 20, "min_new_tokens": 15, "eos_token_id": 276},
    "special tokens": {**GREEDY, "add_special_tokens": False},
    "cleaned": {**GREEDY, "clean_up_tokenization_spaces": True},
    "cut": {**GREEDY, "tokenizer_encode_kwargs": {"truncation": True, "max_length": 4}},
    "config": {"generation_config": transformers.GenerationConfig(do_sample=False, max_new_tokens=4)},
    "batched": {**GREEDY, "batch_size": 2},
}
PAIRS = [(given, call) for given in INPUTS for call in CALLS]
OF_TEXTS: dict[str, dict[str, Any]] = {
    "prefix": {**GREEDY, "prefix": "A tale of old. "},
    "prefix and length": {"do_sample": False, "max_length": 16, "prefix": "A tale of old. "},
    "prefix and least length": {"do_sample": False, "max_new_tokens": 12, "min_length": 8, "prefix": "A tale. "},
    "stop": {"do_sample": False, "max_new_tokens": 12, "stop_sequence": [" wife", " king"]},
    "with special tokens": {**GREEDY, "skip_special_tokens": False, "forced_eos_token_id": 0},
    "hole": {"do_sample": False, "max_new_tokens": 1015, "handle_long_generation": "hole"},
}


@pytest.mark.parametrize(("given", "call"), sampled(PAIRS, 24))
def test_the_same_as_transformers(theirs: Any, ours: Any, given: str, call: str) -> None:
    assert ours(INPUTS[given], **CALLS[call]) == theirs(INPUTS[given], **CALLS[call])


@pytest.mark.parametrize("call", [name for name in OF_TEXTS if name != "hole"])
@pytest.mark.parametrize("given", ["Once upon a time", ["The king", "A fox and"]], ids=["one", "two"])
def test_the_same_of_texts(theirs: Any, ours: Any, given: Any, call: str) -> None:
    assert ours(given, **OF_TEXTS[call]) == theirs(given, **OF_TEXTS[call])


def test_a_long_prompt_loses_its_beginning(ours: Any) -> None:
    """transformers writes a thousand tokens for this; what the model reads is enough to compare."""
    kept = ours(LONG, **OF_TEXTS["hole"], return_tensors=True, stop_strings=" ")[0]["generated_token_ids"]
    whole = ours.tokenizer(LONG)["input_ids"]
    assert kept[:9] == whole[-9:]
    assert ours.tokenizer.model_max_length == 1024


def test_a_stop_string_has_two_names_and_stands_in_the_text(ours: Any) -> None:
    """As in transformers, unlike LanguageModel.generate, whose texts end before it."""
    call: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
    (record,) = ours("Once upon a time", **call, stop_strings=[" wife", " man"])
    assert record["generated_text"] == "Once upon a time there was a man"
    assert ours("Once upon a time", **call, stop_sequence=[" wife", " man"]) == [record]


def test_truncation_cuts_prompts_at_max_length(theirs: Any, ours: Any) -> None:
    call = {"do_sample": False, "truncation": True, "max_length": 8, "max_new_tokens": 4}
    assert ours(LONG, **call) == theirs(LONG, **call)


def test_a_message_can_be_answered_though_the_last_is_the_assistants(theirs: Any, ours: Any) -> None:
    answered = ours(BEGUN, **GREEDY, continue_final_message=False)
    assert answered == theirs(BEGUN, **GREEDY, continue_final_message=False)
    assert len(answered[0]["generated_text"]) == 3


def test_arguments_of_the_pipeline_hold_for_every_call_and_those_of_a_call_come_before(theirs: Any, ours: Any) -> None:
    options: dict[str, Any] = {"do_sample": False, "max_length": 12, "return_full_text": False, "prefix": "Hear: "}
    made = [
        pipeline("text-generation", model=theirs.model, tokenizer=theirs.tokenizer, device="cpu", **options)
        for pipeline in (unspool.pipeline, transformers.pipeline)
    ]
    for call in (
        {},
        {"return_full_text": True},
        {"return_tensors": True},
        {"generation_config": transformers.GenerationConfig(max_new_tokens=2, do_sample=False)},
    ):
        mine, others = (pipe("Once upon a", **call) for pipe in made)
        assert mine == others, call
    # transformers says that both lengths seem to have been set, and counts a prefix that is not there.
    assert made[0]("Once upon a", max_new_tokens=2, prefix="") == [{"generated_text": " time there"}]
    assert made[0]("Once upon a", prefix="") == ours(
        "Once upon a", do_sample=False, max_length=12, return_full_text=False
    )


class Prompts(torch.utils.data.Dataset):  # type: ignore[type-arg]
    texts = ("Once", "The king", "A fox")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"text": self.texts[index]}


def test_data_sets_and_generators_are_read_as_they_are_needed(theirs: Any, ours: Any) -> None:
    expected = theirs(list(Prompts.texts), **GREEDY)
    from_data = ours(KeyDataset(Prompts(), "text"), **GREEDY)
    assert len(from_data) == 3
    assert list(from_data) == expected
    assert list(ours((text for text in Prompts.texts), **GREEDY)) == expected
    assert list(ours(([message] for message in HELLO), **GREEDY)) == theirs([HELLO], **GREEDY)
    assert ours((message for message in HELLO), **GREEDY) == theirs(HELLO, **GREEDY)


def test_an_iterator_is_not_read_further_ahead_than_batch_size(ours: Any) -> None:
    read: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield f"The {number}th king"

    results = ours(texts(), **GREEDY, batch_size=3)
    assert read == [0], "the first one tells texts from messages"
    next(results)
    assert read == [0, 1, 2]
    next(results)
    assert read == [0, 1, 2, 3]
    results.close()
    assert ours("Once", **GREEDY), "what was under way is out of the way"


def test_no_more_than_batch_size_are_under_way(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = [0], [0]
    stream = ours.model.stream

    def counted(*given: Any, **options: Any) -> Any:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        started = stream(*given, **options)
        finish = type(started).generation.fget

        class Counted:
            def __iter__(self) -> Any:
                return iter(started)

            @property
            def generation(self) -> Any:
                under_way[0] -= 1
                return finish(started)

            def close(self) -> None:
                started.close()

        return Counted()

    monkeypatch.setattr(ours.model, "stream", counted, raising=False)
    texts = [f"The {number}th king" for number in range(9)]
    assert len(ours(texts, **GREEDY, batch_size=4)) == 9
    assert most[0] == 4
    ours(texts, **GREEDY)
    assert most[0] == 9


def test_the_defaults_are_those_of_transformers(theirs: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = type(theirs)._default_generation_config.to_diff_dict()
    declared.pop("transformers_version")
    assert declared == TASKS["text-generation"].defaults

    class Seen(Exception):
        pass

    def options_of(**call: Any) -> dict[str, Any]:
        """Return what transformers' `generate` would be called with."""

        def caught(**options: Any) -> Any:
            raise Seen(options)

        with monkeypatch.context() as patch:
            patch.setattr(theirs.model, "generate", caught)
            with pytest.raises(Seen) as seen:
                theirs("Once", **call)
        kept = {"max_new_tokens", "max_length", "do_sample", "temperature", "num_beams"}
        found: dict[str, Any] = {name: value for name, value in seen.value.args[0].items() if name in kept}
        return found

    for call in ({}, {"max_length": 9}, {"do_sample": False}, {"temperature": 0.2}, {"num_beams": 3}):
        resolved = ours._prepare_call(call).resolved
        for name, value in options_of(**call).items():
            if value is not False:
                assert getattr(resolved, name) == value, (call, name)
    # What transformers' `generate` itself adds where nobody says otherwise.
    assert ours._prepare_call({}).resolved.top_k == 50
    assert ours._prepare_call({"top_k": 0}).resolved.top_k is None


def test_the_models_own_config_comes_before_the_pipelines_defaults() -> None:
    stored = unspool.GenerationConfig(temperature=0.3, max_length=40)
    lm = recite("Hello there.")
    lm.config = stored
    resolved = unspool.pipeline("text-generation", model=lm)._prepare_call({}).resolved
    assert (resolved.temperature, resolved.max_length, resolved.max_new_tokens) == (0.3, 40, None)
    assert resolved.do_sample is True
    assert lm.config is stored, "the model is left as it was"


@pytest.mark.parametrize("set_seed", [torch.manual_seed, transformers.set_seed])
def test_a_global_seed_makes_calls_repeatable(ours: Any, set_seed: Any) -> None:
    texts = ["Once", "The king"]
    set_seed(3)
    first = ours(texts, max_new_tokens=8, num_return_sequences=2)
    assert [len(each) for each in first] == [2, 2]
    again = ours(texts, max_new_tokens=8, num_return_sequences=2)
    set_seed(3)
    assert ours(texts, max_new_tokens=8, num_return_sequences=2) == first != again


def test_seeds_of_a_call(ours: Any) -> None:
    texts = ["Once", "Once", "The king"]
    one, same, other = ours(texts, max_new_tokens=8, seed=[5, 5, 6])
    assert one == same
    assert ours("The king", max_new_tokens=8, seed=6) == other
    assert ours(texts, max_new_tokens=8, seed=5)[:2] == [one, same]
    with pytest.raises(OptionError, match="`seed`"):
        ours(texts, max_new_tokens=8, seed=[1, 2])
    with pytest.raises(OptionError, match="`seed`"):
        ours(iter(texts), max_new_tokens=8, seed=[1, 2, 3])


class Told:
    """A streamer that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.said.append((value.dtype, tuple(value.shape), value.flatten().tolist()))

    def end(self) -> None:
        self.said.append("end")


@pytest.mark.parametrize("given", ["Once upon", ["Once", "The king"]])
def test_a_streamer_is_told_what_transformers_tells_it(theirs: Any, ours: Any, given: Any) -> None:
    mine, others = Told(), Told()
    assert ours(given, **GREEDY, streamer=mine) == theirs(given, **GREEDY, streamer=others)
    assert mine.said == others.said


@pytest.mark.parametrize("wrong", [{"tempratur": 1.0}, {"max_new_tokens": 2, "max_length": 3}, {}])
def test_a_streamer_is_told_of_the_end_of_what_fails(ours: Any, wrong: dict[str, Any]) -> None:
    """Somebody may be waiting for it in another thread."""
    told = Told()
    with pytest.raises((OptionError, PromptError)):
        ours("Once" if wrong else "The king " * 2000, **wrong, streamer=told)
    assert told.said == ["end"]


def test_transformers_own_streamer_prints_as_it_goes(ours: Any, capsys: pytest.CaptureFixture[str]) -> None:
    streamer = transformers.TextStreamer(ours.tokenizer, skip_prompt=True)
    (record,) = ours("Once upon", **GREEDY, streamer=streamer, return_full_text=False)
    assert capsys.readouterr().out == record["generated_text"] + "\n"


def test_a_space_between_prompt_and_output_is_kept_where_transformers_loses_it() -> None:
    """Tokenizers that mark spaces at the beginning of words decode an output by itself without its first space."""
    from tests.text.tokenizers import byte_fallback

    torch.manual_seed(0)
    tokenizer = byte_fallback()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    word = tokenizer("king")["input_ids"]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": len(word), "force_words_ids": [word]}
    pipe = unspool.pipeline("text-generation", model=model, tokenizer=tokenizer)
    options |= {"num_beams": 2, "return_full_text": True}
    assert pipe("Once a", **options)[0]["generated_text"] == "Once a king"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"tempratur": 0.5}, "did you mean `temperature`"),
        ({"top_p": 1.5}, r"`top_p` must be in \(0, 1\]"),
        ({"do_sample": False, "top_p": 0.5, "strict": True}, "`top_p` is not read"),
        ({"return_full_text": True, "return_tensors": True}, "`return_full_text` cannot be given together"),
        ({"return_full_text": True, "return_text": True}, "`return_full_text` cannot be given together"),
        ({"return_tensors": True, "return_text": True}, "`return_text` cannot be given together"),
        ({"return_text": False}, "nothing to return"),
        ({"return_full_text": "yes"}, "`return_full_text` must be True or False"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"batch_size": True}, "`batch_size` must be"),
        ({"handle_long_generation": "cut"}, "`handle_long_generation` must be 'hole'"),
        ({"handle_long_generation": "hole", "max_new_tokens": 2000}, "lower `max_new_tokens`"),
        ({"prefix": 3}, "`prefix` must be a text"),
        ({"src_lang": "en"}, "`src_lang` belongs to translation"),
        ({"stop_sequence": "a", "stop_strings": "b"}, "another name for `stop_strings`"),
        ({"streamer": print}, "`streamer` must have `put` and `end`"),
        ({"streamer": Told(), "num_return_sequences": 2}, "cannot be given together with a streamer"),
        ({"tokenizer": object()}, "`tokenizer` must be the pipeline's own"),
        ({"tokenizer_encode_kwargs": 3}, "`tokenizer_encode_kwargs` must be a dict"),
        ({"inputs_embeds": torch.zeros(1)}, "`inputs_embeds`"),
        ({"logits_processor": [print]}, "`logits_processor` is not read by pipelines"),
        ({"max_new_tokens": 3, "max_length": 9}, "cannot be given together"),
        ({"logprobs": 2}, "`logprobs` is not part of the records"),
        ({"echo": True}, "use `return_full_text`"),
    ],
)
def test_what_cannot_be_honored_is_refused(ours: Any, call: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ours("Once", **call)
    with pytest.raises(ValueError, match=message):
        ours(iter(["Once"]), **call) if "hole" not in str(call) else list(ours(iter(["Once"]), **call))


@pytest.mark.parametrize("given", [3, {"text": "Once"}, [1, 2, 3], b"Once", [["Once"]], [HELLO, "Once", 4], [[]]])
def test_what_is_no_text_is_refused(ours: Any, given: Any) -> None:
    with pytest.raises(PromptError, match="a text, a list of messages"):
        ours(given, **GREEDY)


def test_no_inputs_no_results(ours: Any) -> None:
    assert ours([]) == []
    assert list(ours(iter([]))) == []


def test_without_a_template_conversations_are_refused() -> None:
    pipe = unspool.pipeline("text-generation", model=recite("Hello."))
    with pytest.raises(PromptError, match="no chat template"):
        pipe(HELLO)
