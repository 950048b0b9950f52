"""Transcribes the audio of a call window by window, as transformers' Whisper does.

Owns: the order of such a call. Does not know: how a window is decoded or shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from unspool.config import GenerationConfig
from unspool.engines import driver_of
from unspool.errors import OptionError
from unspool.inputs.speech import transcript_prompt
from unspool.interop.decode import Returned
from unspool.interop.encoders import check_decoder_mask, check_speech, languages_and_tasks, start_tokens, token_rows
from unspool.interop.ignored import warn_of_ignored
from unspool.interop.semantics import pad_token, with_known_ids
from unspool.interop.whisper.arguments import WindowedCall
from unspool.interop.whisper.returned import (
    segment_dicts,
    token_times,
    transcripts,
    whole_outputs,
    whole_sequences,
    whole_times,
)
from unspool.interop.whisper.states import WindowStates
from unspool.interop.whisper.windows import Align, WindowDecoder
from unspool.protocols import Runtime
from unspool.runtimes.model_info import text_config
from unspool.runtimes.seq2seq.cross_attention import CrossAttention
from unspool.runtimes.seq2seq.source_info import decoder_limit
from unspool.runtimes.seq2seq.whisper import speech_of
from unspool.source_info import SourceInfo, Speech
from unspool.transcription.alignment import token_seconds
from unspool.transcription.conversation import (
    Decoded,
    SpeechModel,
    Transcription,
    WindowJob,
    run_together,
    transcription,
)
from unspool.transcription.segments import TIME_PRECISION, Segment
from unspool.transcription.temperatures import resolve_temperatures
from unspool.transcription.windows import Audio


def transcribe(
    model: Any,
    info: SourceInfo,
    call: WindowedCall,
    user: GenerationConfig | None,
    stored: GenerationConfig,
    ignored: list[OptionError] | None,
) -> Returned:
    """Transcribe the audio of a call, and return transformers' tensor, dict or output class.

    user, stored, ignored: as in `resolve_options`.
    """
    temperatures = call.settings.temperature or (None,)
    options = resolve_temperatures(call.arguments.options, user, stored, temperatures, drop_in=True, ignored=ignored)
    driver = driver_of(model)
    vocab_size = driver.engine.runtime.info.vocab_size
    for temperature, each in options.items():
        collected = ignored if temperature == temperatures[0] or ignored is None else []
        options[temperature] = each._replace(config=with_known_ids(each.config, vocab_size, collected))
    warn_of_ignored(ignored, stacklevel=3)
    config = options[temperatures[0]].config
    start = start_tokens(config, info, 1)
    speech = speech_of(model, start[0] if start else None)
    assert speech is not None, "windowed calls are for speech models"
    conversations, audios = _conversations(model, info, call, config, speech, lambda: driver.engine.runtime)
    align = _aligner(model, call, speech) if call.settings.return_token_timestamps else None
    states = WindowStates(model, call.states) if call.states else None
    decoder = WindowDecoder(driver, call, options, speech, align=align, states=states)
    rows = run_together(conversations, _monitored(decoder.decode, call, audios))
    return _returned(call, rows, decoder, pad_token(config))


def _conversations(
    model: Any,
    info: SourceInfo,
    call: WindowedCall,
    config: GenerationConfig,
    speech: Speech,
    runtime: Callable[[], Runtime],
) -> tuple[list[Transcription], list[Audio]]:
    """Return the conversation and the audio of each output."""
    assert info.shape is not None, "windows have a length"
    encoder, count = call.arguments.encoder, len(call.features)
    check_speech(encoder, speech, call.start_ids, info)
    check_decoder_mask(encoder.get("decoder_attention_mask"))
    given = None if call.start_ids is None else token_rows("decoder_input_ids", call.start_ids, count)
    about = SpeechModel(
        speech=speech,
        vocab_size=model.config.vocab_size,
        max_length=decoder_limit(text_config(model)) or 0,
        time_precision=call.time_precision,
        frame_seconds=call.frame_seconds,
    )
    conversations: list[Transcription] = []
    audios: list[Audio] = []
    for row, (language, task) in enumerate(languages_and_tasks(encoder, count)):
        audio = Audio(
            call.features[row : row + 1],
            call.num_frames[row],
            input_name=info.input_name,
            window_frames=info.shape[1],
        )
        source, timestamps = audio.window(0).source, call.settings.return_timestamps
        later = transcript_prompt(source, speech, language, task, runtime, timestamps=timestamps)
        starts = (later if given is None else given[row], later)
        for _ in range(call.repeats):
            index = len(conversations)
            conversations.append(transcription(index, audio, starts, call.settings, about, single=call.unique))
            audios.append(audio)
    return conversations, audios


def _aligner(model: Any, call: WindowedCall, speech: Speech) -> Align:
    """Return a function that gives the tokens of a window their times."""
    attention = CrossAttention(model)

    def align(job: WindowJob, tokens: Sequence[int]) -> list[float]:
        weights = attention.weights(job.window.source, [*job.prompt, *tokens[:-1]], speech.alignment_heads)
        weights = weights[:, len(job.prompt) :]
        if call.audible is not None:
            left = call.audible[job.audio // call.repeats] - job.window.start
            weights = weights[..., : max(0, left) // speech.frames_per_position]
        return token_seconds(weights, filter_width=speech.median_filter_width, seconds=TIME_PRECISION)

    return align


def _monitored(
    decode: Callable[[Sequence[WindowJob]], list[Decoded]], call: WindowedCall, audios: Sequence[Audio]
) -> Callable[[Sequence[WindowJob]], list[Decoded]]:
    """Return the function, which first tells the caller's `monitor_progress` the position in each audio."""
    monitor = call.monitor
    if monitor is None:
        return decode

    def watched(jobs: Sequence[WindowJob]) -> list[Decoded]:
        positions = [audio.num_frames for audio in audios]
        for job in jobs:
            positions[job.audio] = job.window.start
        ends = [audio.num_frames for audio in audios]
        if any(not job.attempt for job in jobs):
            monitor(torch.tensor([positions, ends], dtype=torch.int64, device="cpu").T)
        return decode(jobs)

    return watched


def _returned(call: WindowedCall, rows: Sequence[list[Segment]], decoder: WindowDecoder, pad: int | None) -> Returned:
    """Return the result of the call in transformers' form. pad: fills shorter rows."""
    settings, device = call.settings, call.features.device
    results = decoder.newest_results(pad)
    if call.is_whole:
        return whole_outputs(results, decoder.kind, pad, device)
    sequences = whole_sequences(results, pad, device) if call.unique else transcripts(rows, pad, device)
    shows_segments = call.returns_segments or call.returns_dict
    if not shows_segments and not settings.return_token_timestamps:
        return sequences
    found: dict[str, Any] = {"sequences": sequences}
    if settings.return_token_timestamps:
        found["token_timestamps"] = whole_times(results, device) if call.unique else token_times(rows, device)
    if shows_segments:
        with_times = settings.return_token_timestamps
        found["segments"] = [segment_dicts(row, with_times=with_times, device=device) for row in rows]
    return found
