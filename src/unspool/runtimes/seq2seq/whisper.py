"""How a transcript begins: Whisper's language and task, which are tokens of the decoder's prompt.

Owns these tokens. Knows no audio, and runs nothing but the one pass that finds a language out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unspool.engine.locked_runtime import locked
from unspool.errors import OptionError
from unspool.protocols import Runtime
from unspool.types import Feed, Source

_DETECTIONS = itertools.count(-2, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What a Whisper model stores of its prompt.

    start: the first token. stored: the ids that an older checkpoint stores to follow it, None for a language that is to
    be found out. languages: "<|en|>" --> id; empty for a model of one language. tasks: "transcribe" --> id.
    no_timestamps: the token that asks for none. language, task: as stored, None where they are not.
    """

    start: int
    stored: tuple[int | None, ...] = ()
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    no_timestamps: int | None = None
    language: str | None = None
    task: str | None = None

    def prompt(self, language: str | None = None, task: str | None = None) -> tuple[int | None, ...]:
        """Return the decoder's prompt; None stands where the language has to be found out: see `detect_language`.

        Args:
            language: a code ("de"), a name ("german") or a token ("<|de|>"); None for the stored one, else for any.
            task: "transcribe" or "translate" (into English); None for the stored one, else for "transcribe" where a
                language is known.

        Raises:
            OptionError: the model does not know the language or the task.

        Source: transformers, `WhisperGenerationMixin._retrieve_init_tokens`.
        """
        language, task = language or self.language, task or self.task
        ids: list[int | None] = [self.start]
        if language is None and task is None:
            ids += self.stored
        if language is not None:
            ids[1:2] = [self._language_id(language)]
        elif self.languages and len(ids) < 2:
            ids.append(None)
        if task is not None:
            ids = [each for each in ids if each is None or each not in self.tasks.values()] + [self._task_id(task)]
        elif language is not None and self.tasks and not set(ids) & set(self.tasks.values()):
            ids.append(self._task_id("transcribe"))
        if self.no_timestamps is not None and ids[-1] != self.no_timestamps:
            ids.append(self.no_timestamps)
        # A model of one language may store that none is to be named.
        return tuple(ids) if self.languages else tuple(each for each in ids if each is not None)

    def _language_id(self, language: str) -> int:
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        name = language.lower()
        token = name if name in self.languages else f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"
        if token not in self.languages:
            known = ", ".join(sorted(each.strip("<|>") for each in self.languages)) or "none: it has but one"
            raise OptionError("language", language, f"must be one that the model knows ({known})", "see its card")
        return self.languages[token]

    def _task_id(self, task: str) -> int:
        if task not in self.tasks:
            known = ", ".join(map(repr, self.tasks)) or "none"
            raise OptionError("task", task, f"must be one that the model knows ({known})", "leave it out")
        return self.tasks[task]


def speech_of(model: Any, start: int | None) -> Speech | None:
    """Return what a Whisper model stores of its prompt; None for any other model.

    Args:
        model: of transformers.
        start: its first decoder token.
    """
    if model.config.model_type != "whisper" or start is None:
        return None
    generation = model.generation_config
    stored = getattr(generation, "forced_decoder_ids", None) or getattr(model.config, "forced_decoder_ids", None) or ()
    follow = dict(stored)
    return Speech(
        start=start,
        stored=tuple(follow[place] for place in itertools.takewhile(follow.__contains__, itertools.count(1))),
        languages=dict(getattr(generation, "lang_to_id", None) or {}),
        tasks=dict(getattr(generation, "task_to_id", None) or {}),
        no_timestamps=getattr(generation, "no_timestamps_token_id", None),
        language=_name(getattr(generation, "language", None)),
        task=_name(getattr(generation, "task", None)),
    )


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def transcript_prompt(
    source: Source, speech: Speech, language: str | None, task: str | None, runtime: Callable[[], Runtime]
) -> tuple[int, ...]:
    """Return what the transcript of a source begins with; the language is found out where nobody names it.

    Args:
        language, task: as in Speech.prompt.
        runtime: returns what runs the model; called only where the language has to be found out.

    Raises:
        OptionError: as Speech.prompt.
    """
    prompt = speech.prompt(language, task)
    if None in prompt:
        found = detect_language(locked(runtime()), source, speech)
        return tuple(found if token is None else token for token in prompt)
    return tuple(token for token in prompt if token is not None)


def detect_language(runtime: Runtime, source: Source, speech: Speech) -> int:
    """Return the id of the language that the model hears: the likeliest to follow its first token.

    Reads the source once; the sequence is released again.

    Source: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, section 2.3.
    """
    seq = next(_DETECTIONS)
    try:
        logits = runtime.forward([Feed(seq=seq, tokens=(speech.start,), asked=(0,), source=source)]).logits[0]
    finally:
        runtime.release(seq)
    return max(speech.languages.values(), key=lambda token: float(logits[token]))
