"""The tasks of pipelines, with their defaults and result keys.

Owns: names of tasks, keys of results, and each task's default options. Does not know: models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from unspool.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task.

    name: as given. key: results hold their text under `<key>_text` and their ids under `<key>_token_ids`.
    reads_source: True if the text is the input of an encoder, False if it is a beginning to continue.
    defaults: options that neither the caller nor the model's stored config sets.
    languages: source and target language, if the task's name holds them.
    """

    name: str
    key: str
    reads_source: bool
    defaults: Mapping[str, Any]
    languages: tuple[str, str] | None = None

    @property
    def translates(self) -> bool:
        return self.key == "translation"


_SAMPLED: Final = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
_SEARCHED: Final = {"max_new_tokens": 256, "num_beams": 4}

SPEECH: Final = "automatic-speech-recognition"
IMAGES: Final = "image-text-to-text"
"""The tasks that transformers' own pipelines serve, with our decoding."""

TASKS: Final[Mapping[str, Task]] = {
    task.name: task
    for task in (
        Task(name="text-generation", key="generated", reads_source=False, defaults=_SAMPLED),
        Task(name="text2text-generation", key="generated", reads_source=True, defaults=_SEARCHED),
        Task(name="summarization", key="summary", reads_source=True, defaults=_SEARCHED),
        Task(name="translation", key="translation", reads_source=True, defaults=_SEARCHED),
    )
}
"""Every task; the defaults are those of transformers' pipelines (text-generation: 5.23, the others: 4.x)."""

_PAIR: Final = re.compile(r"translation_(\w+?)_to_(\w+)")


def find_task(name: Any) -> Task:
    """Return the task of this name, including `translation_xx_to_yy`.

    Raises:
        OptionError: if the name is unknown; the message lists all tasks.
    """
    if isinstance(name, str):
        if name in TASKS:
            return TASKS[name]
        if pair := _PAIR.fullmatch(name):
            return replace(TASKS["translation"], name=name, languages=(pair[1], pair[2]))
    listed = ", ".join((*TASKS, SPEECH, IMAGES))
    hint = "for tasks that write no text use transformers.pipeline"
    raise OptionError("task", name, f"must be one of {listed}, translation_xx_to_yy", hint)
