"""How Whisper's transcripts begin: against transformers' own choice of the decoder's prompt."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from tests.tiny_seq2seq import random_source, tiny_seq2seq
from unspool.errors import OptionError
from unspool.inputs.speech import detect_language
from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime
from unspool.runtimes.seq2seq.source_info import source_info
from unspool.runtimes.seq2seq.whisper import speech_of
from unspool.source_info import Speech

LANGUAGES = {"<|en|>": 40, "<|de|>": 41, "<|fr|>": 42}
TASKS = {"translate": 50, "transcribe": 51}
SILENT = 60


def model(**stored: Any) -> Any:
    """Return a tiny Whisper whose generation config stores what is named; by default that of a multilingual one."""
    made = tiny_seq2seq("whisper")
    fields = {"lang_to_id": LANGUAGES, "task_to_id": TASKS, "no_timestamps_token_id": SILENT, "is_multilingual": True}
    made.generation_config.return_timestamps = False
    for name, value in (fields | stored).items():
        if value is not None:
            setattr(made.generation_config, name, value)
    return made


def theirs(made: Any, source: Any, **asked: Any) -> tuple[int, ...]:
    """Return the prompt that transformers' own generate would make."""
    config = copy.deepcopy(made.generation_config)
    for name, value in asked.items():
        setattr(config, name, value)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = made._retrieve_init_tokens(
            source.inputs["input_features"],
            batch_size=1,
            generation_config=config,
            config=made.config,
            num_segment_frames=made.model.encoder.config.max_source_positions * 2,
            kwargs={},
        )
    return tuple(found[0].tolist())


@pytest.mark.parametrize("asked", [{}, {"language": "de"}, {"language": "German"}, {"language": "<|fr|>"},
                                   {"task": "translate"}, {"language": "en", "task": "translate"}])  # fmt: skip
@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"forced_decoder_ids": [[1, None], [2, 51]]},
        {"forced_decoder_ids": [[1, 41], [2, 50], [3, SILENT]]},
        {"language": "<|fr|>", "task": "transcribe"},
        {"no_timestamps_token_id": None},
    ],
)
def test_the_prompt_is_the_one_transformers_makes(stored: dict[str, Any], asked: dict[str, Any]) -> None:
    made, source = model(**stored), random_source("whisper", 3)
    info = source_info(made)
    assert info.speech is not None
    ours = info.speech.prompt(**asked)
    if None in ours:
        language = detect_language(Seq2SeqRuntime(made, owns_model=False), source, info.speech)
        assert language in LANGUAGES.values()
        ours = tuple(language if token is None else token for token in ours)
    assert ours == theirs(made, source, **asked)


def test_a_model_of_one_language_begins_as_it_stores() -> None:
    made = model(lang_to_id=None, task_to_id=None, is_multilingual=False, forced_decoder_ids=[[1, SILENT]])
    speech = speech_of(made, 3)
    assert speech is not None and speech.prompt() == (3, SILENT) == theirs(made, random_source("whisper"))
    with pytest.raises(OptionError, match="`language` must be a language of the model \\(none: it has only one\\)"):
        speech.prompt(language="de")


def test_unknown_languages_and_tasks_are_refused_by_name() -> None:
    speech = speech_of(model(), 3)
    assert speech is not None
    with pytest.raises(OptionError, match="`language` must be a language of the model \\(de, en, fr\\), got 'es'"):
        speech.prompt(language="es")
    with pytest.raises(OptionError, match="`task` must be a task of the model \\('translate', 'transcribe'\\)"):
        speech.prompt(task="sing")


def test_finding_the_language_out_leaves_nothing_behind() -> None:
    made, source = model(), random_source("whisper")
    runtime = Seq2SeqRuntime(made, owns_model=False)
    speech = speech_of(made, 3)
    assert speech is not None
    found = {detect_language(runtime, source, speech) for _ in range(2)}
    runtime.check()
    assert len(found) == 1 and not runtime._slots.live and not runtime._sources.of
    with torch.no_grad():
        logits = made(**source.inputs, decoder_input_ids=torch.tensor([[3]])).logits[0, -1]
    assert found == {max(LANGUAGES.values(), key=lambda token: float(logits[token]))}


def test_only_whisper_has_a_prompt_of_this_kind() -> None:
    assert speech_of(tiny_seq2seq("bart"), 3) is None
    assert isinstance(source_info(tiny_seq2seq("whisper")).speech, Speech)
