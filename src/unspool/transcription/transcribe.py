"""The code of `LanguageModel.transcribe`: from audio and options to requests, and from segments to transcripts.

Owns: the order of a call. Does not know: decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from unspool.config import GenerationConfig
from unspool.engine.driver import Driver
from unspool.engine.request import Request
from unspool.errors import ModelError, OptionError
from unspool.inputs.audio import audio_features
from unspool.inputs.reader import EncodedPrompt, EncodedReader, Reader
from unspool.inputs.sources import read_source
from unspool.inputs.speech import transcript_prompt
from unspool.planning import plan_requests
from unspool.processors.timestamps import Timestamps
from unspool.results.transcript import Transcript, TranscriptSegment
from unspool.runtimes.seq2seq.cross_attention import CrossAttention
from unspool.seeds import fresh_seed
from unspool.source_info import SourceInfo, Speech
from unspool.text.detokenize import Detokenizer
from unspool.transcription.alignment import token_seconds
from unspool.transcription.confidence import Confidence
from unspool.transcription.conversation import (
    Decoded,
    SpeechModel,
    Transcription,
    WindowJob,
    run_together,
    transcription,
)
from unspool.transcription.no_speech import WithNoSpeech
from unspool.transcription.quality import compression_ratio
from unspool.transcription.segments import TIME_PRECISION, Segment
from unspool.transcription.settings import TranscriptSettings, read_prompt_ids, read_temperatures
from unspool.transcription.temperatures import Options, resolve_temperatures
from unspool.transcription.windows import Audio
from unspool.tuning import MAX_IDLE_SOURCES

_SETTINGS: Final = (
    "return_token_timestamps",
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
    "condition_on_prev_tokens",
    "prompt_condition_type",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcriber:
    """Transcribes with one model. model: of transformers, for its cross-attention; None if there is not one."""

    reader: Reader
    driver: Driver
    detokenizer: Detokenizer | None
    stored: GenerationConfig
    model: Any

    def run(
        self, audio: Any, user: GenerationConfig | None, options: Mapping[str, Any]
    ) -> Transcript | list[Transcript]:
        """Return the transcript of an audio, or a list for a list of audios, which share the forward passes."""
        info = self.reader.source
        if info is None or info.speech is None or info.shape is None:
            hint = "load a Whisper model; other models transcribe with `generate`"
            raise ModelError(f"{self.reader.info.name} does not transcribe audio window by window; {hint}")
        prompts = self.reader.split(audio)
        audios, given = prompts.items, dict(options)
        languages = _languages(given.pop("language", None), len(audios))
        task, settings = given.pop("task", None), _settings(given, info, info.speech)
        if given.get("num_return_sequences") not in (None, 1):
            allowed = "must be 1: a transcript is one output"
            raise OptionError("num_return_sequences", given["num_return_sequences"], allowed, "leave it out")
        temperatures = settings.temperature or (None,)
        resolved = resolve_temperatures(given, user, self.stored, temperatures)
        call = _Call(self, info, info.speech, settings, resolved)
        found = [each for group in _groups(audios, languages) for each in call.transcribe(group, task)]
        return found[0] if prompts.single else found


def _languages(given: Any, count: int) -> list[str | None]:
    several = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(several) != count or not all(isinstance(each, str | None) for each in several):
        allowed = f"must be a name such as 'en', or one for each of the {count} audios"
        raise OptionError("language", given, allowed, "leave it out to have it detected")
    return several


def _settings(given: dict[str, Any], info: SourceInfo, speech: Speech) -> TranscriptSettings:
    """Remove the settings of the transcription from a call's options, and return them."""
    if speech.no_timestamps is None:
        raise ModelError(
            f"{info.model} stores no `no_timestamps_token_id`: transcribe needs timestamps; use `generate`"
        )
    settings = TranscriptSettings(
        return_timestamps=True,
        temperature=read_temperatures(given.pop("temperature", None)),
        prompt_ids=read_prompt_ids(given.pop("prompt_ids", None)),
        **{name: value for name in _SETTINGS if (value := given.pop(name, None)) is not None},
    )
    if settings.return_token_timestamps and not speech.alignment_heads:
        allowed = f"needs `alignment_heads` in the generation config of {info.model}"
        raise OptionError("return_token_timestamps", True, allowed, "store them there, or leave this out")
    return settings


def _groups(audios: Sequence[Any], languages: Sequence[str | None]) -> Iterator[list[tuple[Any, str | None]]]:
    """Yield as many audios at a time as the runtime keeps encoded."""
    pairs = list(zip(audios, languages, strict=True))
    for start in range(0, len(pairs), MAX_IDLE_SOURCES):
        yield pairs[start : start + MAX_IDLE_SOURCES]


class _Call:
    """One call of `transcribe`."""

    def __init__(
        self,
        model: Transcriber,
        info: SourceInfo,
        speech: Speech,
        settings: TranscriptSettings,
        options: Mapping[float | None, Options],
    ) -> None:
        self._model, self._info, self._speech, self._settings, self._options = model, info, speech, settings, options
        seed = next(iter(options.values())).config.seed
        if isinstance(seed, tuple):
            raise OptionError("seed", seed, "must be one integer", "different audios draw differently under one seed")
        self._seed = fresh_seed() if seed is None else seed
        self._attention: CrossAttention | None = None
        if settings.return_token_timestamps:
            if model.model is None:
                raise ModelError(
                    f"{model.reader.info.name}: token times need the cross-attention of a transformers model"
                )
            self._attention = CrossAttention(model.model)

    def transcribe(self, audios: Sequence[tuple[Any, str | None]], task: str | None) -> list[Transcript]:
        """Transcribe audios together. audios: each with its language, None to detect it"""
        starts: list[tuple[int, ...]] = []
        conversations: list[Transcription] = []
        about = SpeechModel(
            speech=self._speech,
            vocab_size=self._model.reader.info.vocab_size,
            max_length=self._model.reader.info.max_length or 0,
        )
        for index, (given, language) in enumerate(audios):
            audio = self._audio(given)
            first = audio.window(0).source
            runtime = self._model.reader.runtime
            start = transcript_prompt(first, self._speech, language, task, lambda: runtime, timestamps=True)  # noqa: B023
            starts.append(start)
            conversations.append(transcription(index, audio, (start, start), self._settings, about))
        rows = run_together(conversations, self._decode)
        return [self._transcript(row, start) for row, start in zip(rows, starts, strict=True)]

    def _audio(self, given: Any) -> Audio:
        assert self._info.shape is not None, "windows have a length"
        features = audio_features(given, self._info, processor=self._model.reader.processor)
        features = features if features.ndim == 3 else features[None]
        if features.shape[:2] != (1, self._info.shape[0]) or not features.is_floating_point():
            read_source(given, self._info, processor=self._model.reader.processor)  # raises with the right shape
        name, size = self._info.input_name, self._info.shape[1]
        return Audio(features, features.shape[2], input_name=name, window_frames=size)

    def _decode(self, jobs: Sequence[WindowJob]) -> list[Decoded]:
        """Decode windows in one batch."""
        plans = [self._request(job) for job in jobs]
        finished = self._model.driver.finish([request for request, _, _ in plans])
        found = []
        for job, (request, detector, confidence), done in zip(jobs, plans, finished, strict=True):
            output, config = done.outputs[0], request.config
            tempers = config.do_sample and not config.renormalize_logits
            found.append(
                Decoded(
                    token_ids=output.token_ids,
                    ends=output.finish_reason == "eos",
                    mean_logprob=confidence.mean_logprob(output, config.temperature or 1.0 if tempers else 1.0),
                    no_speech_prob=detector.probability,
                    temperature=job.temperature,
                    result=self._times(job, output.token_ids),
                )
            )
        return found

    def _request(self, job: WindowJob) -> tuple[Request, WithNoSpeech, Confidence]:
        """Return the request of a window, with the objects that observe it."""
        speech = self._speech
        assert speech.no_timestamps is not None, "timestamps were checked"
        config, own = self._options[job.temperature]
        rules = Timestamps(speech.no_timestamps, speech.max_initial_timestamp, by_sum=speech.sums_timestamps)
        confidence = Confidence()
        (planned,) = plan_requests(
            [EncodedPrompt(job.prompt, None, job.window.source)],
            config.replace(seed=self._seed + job.attempt),
            replace(own, processors=(rules, *own.processors, confidence)),
            reader=EncodedReader(self._model.reader.runtime, self._model.reader.tokenizer),
            detokenizer=self._model.detokenizer,
        )
        detector = WithNoSpeech(planned.request.strategy, speech.no_timestamps - 1, job.num_start - 1)
        return replace(planned.request, strategy=detector), detector, confidence

    def _times(self, job: WindowJob, tokens: Sequence[int]) -> list[float] | None:
        """Return the start of each token in its window, in seconds, if the call wants it."""
        if self._attention is None:
            return None
        heads, start = self._speech.alignment_heads, len(job.prompt)
        weights = self._attention.weights(job.window.source, [*job.prompt, *tokens[:-1]], heads)[:, start:]
        weights = weights[..., : job.window.num_frames // self._speech.frames_per_position]
        return token_seconds(weights, filter_width=self._speech.median_filter_width, seconds=TIME_PRECISION)

    # --- results ------------------------------------------------------------------------------------------------

    def _transcript(self, row: Sequence[Segment], start: Sequence[int]) -> Transcript:
        names = {token: name.strip("<|>") for name, token in self._speech.languages.items()}
        language = next((names[token] for token in start if token in names), None)
        segments = tuple(map(self._segment, row))
        return Transcript(
            text=self._text(token for each in row for token in each.token_ids), segments=segments, language=language
        )

    def _segment(self, segment: Segment) -> TranscriptSegment:
        decoded: Decoded = segment.decoded
        times = decoded.result
        if times is not None:
            times = tuple(segment.offset + time for time in times[segment.first : segment.last])
        return TranscriptSegment(
            start=segment.start,
            end=segment.end,
            text=self._text(segment.token_ids),
            token_ids=segment.token_ids,
            token_times=times,
            mean_logprob=math.nan if decoded.mean_logprob is None else decoded.mean_logprob,
            compression_ratio=compression_ratio(decoded.token_ids, self._model.reader.info.vocab_size),
            no_speech_prob=math.nan if decoded.no_speech_prob is None else decoded.no_speech_prob,
            temperature=decoded.temperature,
        )

    def _text(self, tokens: Any) -> str:
        """Return the text of tokens without timestamps; empty without a tokenizer."""
        assert self._speech.no_timestamps is not None, "timestamps were checked"
        ids = [token for token in tokens if token < self._speech.no_timestamps]
        return self._model.detokenizer.decode(ids) if self._model.detokenizer is not None else ""
