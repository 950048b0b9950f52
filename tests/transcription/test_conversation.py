"""One audio as a conversation, with a decoder that answers from a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from unspool.errors import OptionError
from unspool.source_info import Speech
from unspool.transcription.conversation import Decoded, SpeechModel, WindowJob, run_together, transcription
from unspool.transcription.quality import compression_ratio
from unspool.transcription.settings import TranscriptSettings, read_prompt_ids, read_temperatures
from unspool.transcription.windows import Audio

BEGIN, EOS = 51, 2
MODEL = SpeechModel(
    speech=Speech(start=3, languages={}, tasks={}, no_timestamps=BEGIN - 1, previous=40), vocab_size=100, max_length=20
)
START = (3, 9)


def audio(frames: int) -> Audio:
    return Audio(torch.randn(1, 4, frames), frames, input_name="input_features", window_frames=20)


def transcribed(frames: int, answers: Sequence[Any], **settings: Any) -> tuple[list[Any], list[WindowJob]]:
    """Return the segments of an audio, and the windows that were asked for. answers: tokens, or Decoded."""
    jobs: list[WindowJob] = []

    def decode(several: Sequence[WindowJob]) -> list[Decoded]:
        (job,) = several
        answer = answers[len(jobs)]
        jobs.append(job)
        if isinstance(answer, Decoded):
            return [answer]
        return [Decoded(token_ids=(*answer, EOS), ends=True, temperature=job.temperature)]

    one = transcription(0, audio(frames), (START, START), TranscriptSettings(**settings), MODEL)
    (segments,) = run_together([one], decode)
    assert len(jobs) == len(answers)
    return segments, jobs


def test_the_next_window_begins_at_the_start_of_an_unfinished_segment() -> None:
    first = (BEGIN, 11, 12, BEGIN + 3, BEGIN + 3, 13, BEGIN + 6, BEGIN + 6)
    segments, jobs = transcribed(30, [first, (BEGIN, 14, BEGIN + 9)])
    assert [job.window.start for job in jobs] == [0, 12] and [job.window.num_frames for job in jobs] == [20, 18]
    assert [segment.token_ids for segment in segments] == [first[:4], first[4:], (BEGIN, 14, BEGIN + 9)]
    times = [(0.0, 0.06), (0.06, 0.12), (0.12, 0.12 + 9 * 0.02)]
    assert [(segment.start, segment.end) for segment in segments] == [pytest.approx(pair) for pair in times]


def test_a_window_that_ends_in_one_timestamp_is_done() -> None:
    segments, jobs = transcribed(25, [(BEGIN, 11, BEGIN + 2, BEGIN + 2, 12, BEGIN + 4), (12,)])
    assert [job.window.start for job in jobs] == [0, 20]
    assert [segment.end for segment in segments] == [pytest.approx(each) for each in (0.04, 0.08, 0.2 + 0.04)]


def test_the_prompt_has_the_text_before() -> None:
    text = (BEGIN, 11, BEGIN + 3, BEGIN + 3)
    _, jobs = transcribed(30, [text] * 4 + [(5,) * 3] * 0 + [(BEGIN, 14)], condition_on_prev_tokens=True)
    before = [(*text[:3],) * count for count in range(5)]
    assert jobs[0].prompt == START and jobs[1].prompt == (40, *text[:3], *START)
    assert jobs[4].prompt == (40, *before[4][-9:], *START), "at most half of the decoder"


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({}, [(40, 7, 3, 9), (40, 7, 3, 9)]),
        ({"condition_on_prev_tokens": True}, [(40, 7, 3, 9), (40, 7, 11, 3, 9)]),
        (
            {"condition_on_prev_tokens": True, "prompt_condition_type": "all-segments"},
            [(40, 7, 3, 9), (40, 7, 11, 3, 9)],
        ),
    ],
)
def test_prompt_ids_come_first(settings: dict[str, Any], prompts: list[tuple[int, ...]]) -> None:
    _, jobs = transcribed(40, [(11,), (12,)], prompt_ids=(40, 7), **settings)
    assert [job.prompt for job in jobs] == prompts


def test_an_output_is_tried_again_at_the_next_temperature() -> None:
    loop, plain = (9,) * 30, (11, 12, 13)
    settings = {"temperature": (0.0, 0.4, 0.8), "compression_ratio_threshold": 1.2}
    segments, jobs = transcribed(20, [loop, loop, plain], **settings)
    assert [job.temperature for job in jobs] == [0.0, 0.4, 0.8] and [job.attempt for job in jobs] == [0, 1, 2]
    assert len({id(job.window.source) for job in jobs}) == 1, "encoded once"
    assert segments[0].token_ids == plain
    segments, jobs = transcribed(20, [loop] * 3, **settings)
    assert segments[0].token_ids == loop, "the last attempt counts"


def test_text_of_a_high_temperature_precedes_no_window() -> None:
    loop = (9,) * 30
    settings = {"temperature": (0.0, 0.8), "compression_ratio_threshold": 1.2, "condition_on_prev_tokens": True}
    _, jobs = transcribed(40, [loop, (11,), (12,)], **settings)
    assert jobs[2].prompt == START


@pytest.mark.parametrize(
    ("logprob", "no_speech", "skipped"), [(-2.0, 0.9, True), (-2.0, 0.1, False), (-0.5, 0.9, False)]
)
def test_a_silent_window_is_skipped(logprob: float, no_speech: float, skipped: bool) -> None:
    answer = Decoded(token_ids=(11, EOS), ends=True, mean_logprob=logprob, no_speech_prob=no_speech)
    segments, _ = transcribed(20, [answer], logprob_threshold=-1.0, no_speech_threshold=0.6)
    assert (not segments) is skipped


def test_the_compression_ratio_is_that_of_transformers() -> None:
    from transformers import WhisperForConditionalGeneration

    for tokens, size in (((1, 2, 3), 97), ((7,) * 50, 51865), (tuple(range(300)), 51865)):
        theirs = WhisperForConditionalGeneration._retrieve_compression_ratio(torch.tensor(tokens), size)
        assert compression_ratio(tokens, size) == theirs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_speech_threshold": 0.6}, "`no_speech_threshold` needs `logprob_threshold`"),
        ({"prompt_condition_type": "all-segments"}, "needs `condition_on_prev_tokens`"),
        ({"prompt_condition_type": "some"}, "must be 'first-segment' or 'all-segments'"),
        ({"logprob_threshold": "low"}, "must be a number"),
        ({"return_timestamps": 1}, "must be True or False"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TranscriptSettings(**settings)


def test_wrong_lists_are_refused() -> None:
    assert read_temperatures(0.5) == (0.5,) and read_temperatures([0, 1]) == (0.0, 1.0)
    for wrong in ((), (-1.0,), "warm"):
        with pytest.raises(OptionError, match="`temperature` must be a number"):
            read_temperatures(wrong)
    assert read_prompt_ids(torch.tensor([4, 5])) == (4, 5) and read_prompt_ids(None) == ()
    with pytest.raises(OptionError, match="`prompt_ids` must be one row"):
        read_prompt_ids(torch.tensor([[4, 5]]))
