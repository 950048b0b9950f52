"""The transcription of one audio as a conversation: it asks for one window after the other to be decoded.

Owns: the order of windows and temperatures. Does not know: how a window is decoded, or which others are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from unspool.source_info import Speech
from unspool.transcription.prompts import first_history, window_prompt
from unspool.transcription.quality import compression_ratio, judge
from unspool.transcription.segments import FRAME_SECONDS, TIME_PRECISION, Segment, cut_into_segments
from unspool.transcription.settings import TranscriptSettings
from unspool.transcription.windows import Audio, AudioWindow

_LOW_TEMPERATURE = 0.5
"""Text written below this temperature can precede the next window."""


class WindowJob(NamedTuple):
    """A window to decode.

    audio: index of the audio. prompt: of the decoder. num_start: tokens at the end of the prompt from the start token
    on. earlier: tokens of the prompts of all windows before it. attempt: 0 for the first try. temperature: None for the
    decoding options as they are.
    """

    audio: int
    window: AudioWindow
    prompt: tuple[int, ...]
    num_start: int
    earlier: int
    attempt: int = 0
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The output of a window.

    token_ids: with the end token. ends: True if an end token ended it. mean_logprob: per token, after the processors
    and without temperature; None if not computed. no_speech_prob: None if not computed. temperature: of the attempt;
    None for the decoding options as they are. result: anything else that the decoder returns.
    """

    token_ids: tuple[int, ...]
    ends: bool
    mean_logprob: float | None = None
    no_speech_prob: float | None = None
    temperature: float | None = None
    result: Any = field(default=None, repr=False)

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The tokens without the end token."""
        return self.token_ids[:-1] if self.ends else self.token_ids


Transcription: TypeAlias = Generator[WindowJob, Decoded, list[Segment]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechModel:
    """The facts about a model that a conversation needs. max_length: tokens that the decoder can hold."""

    speech: Speech
    vocab_size: int
    max_length: int
    time_precision: float = TIME_PRECISION
    frame_seconds: float = FRAME_SECONDS


def transcription(
    index: int,
    audio: Audio,
    starts: Sequence[Sequence[int]],
    settings: TranscriptSettings,
    model: SpeechModel,
    *,
    single: bool = False,
) -> Transcription:
    """Ask for each window of an audio, and return the segments of its transcript.

    Args:
        index: of the audio.
        starts: the start tokens of the decoder in the first window, and in all later windows.
        single: True to end after the first window.

    Source: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, section 3.8.
    """
    speech, segments = model.speech, []
    history = first_history(settings, speech)
    conditions = settings.condition_on_prev_tokens
    begin = None if speech.no_timestamps is None else speech.no_timestamps + 1
    done = earlier = 0
    while done < audio.num_frames and not (single and earlier):
        window = audio.window(done)
        start = starts[0] if not done else starts[1]
        prompt = window_prompt(start, history, settings, speech, conditions=conditions, max_length=model.max_length)
        job = WindowJob(index, window, prompt, len(starts[1]), earlier)
        decoded, is_silent = yield from _attempts(job, settings, model.vocab_size)
        is_certain = decoded.temperature is None or decoded.temperature < _LOW_TEMPERATURE
        conditions = settings.condition_on_prev_tokens and is_certain
        earlier += len(prompt)
        if is_silent:
            done += window.num_frames
            continue
        cut = cut_into_segments(
            decoded.text_ids,
            begin=begin,
            offset=done * model.time_precision / speech.frames_per_position,
            num_frames=window.num_frames,
            frames_per_position=speech.frames_per_position,
            decoded=decoded,
            time_precision=model.time_precision,
            frame_seconds=model.frame_seconds,
        )
        segments += cut.segments
        history += [segment.token_ids for segment in cut.segments]
        done += cut.num_frames
    return segments


def _attempts(
    job: WindowJob, settings: TranscriptSettings, vocab_size: int
) -> Generator[WindowJob, Decoded, tuple[Decoded, bool]]:
    """Decode a window at one temperature after the other. Returns the last output, and if the window is silent."""
    temperatures = (None,) if settings.temperature is None else settings.temperature
    measures = settings.compression_ratio_threshold is not None
    for attempt, temperature in enumerate(temperatures):
        decoded = yield job._replace(attempt=attempt, temperature=temperature)
        verdict = judge(
            settings,
            ratio=compression_ratio(decoded.token_ids, vocab_size) if measures else None,
            mean_logprob=decoded.mean_logprob,
            no_speech_prob=decoded.no_speech_prob,
        )
        if verdict != "again":
            break
    return decoded, verdict == "silence"


def run_together(
    conversations: Sequence[Transcription], decode: Callable[[Sequence[WindowJob]], Sequence[Decoded]]
) -> list[list[Segment]]:
    """Run conversations to their end: each step decodes the next window of every audio that has not ended.

    Args:
        decode: returns the outputs of windows in their order.
    """
    open_jobs: dict[int, WindowJob] = {}
    done: dict[int, list[Segment]] = {}

    def proceed(index: int, decoded: Decoded | None) -> None:
        try:
            open_jobs[index] = conversations[index].send(decoded) if decoded else next(conversations[index])
        except StopIteration as stop:
            done[index] = stop.value
            open_jobs.pop(index, None)

    for index in range(len(conversations)):
        proceed(index, None)
    while open_jobs:
        indices = list(open_jobs)
        for index, decoded in zip(indices, decode([open_jobs[index] for index in indices]), strict=True):
            proceed(index, decoded)
    return [done[index] for index in range(len(conversations))]
