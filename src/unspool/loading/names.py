"""Names of models: those on this machine, and the most likely meaning of a wrong name.

Owns: the suggestions for a wrong name, and one request that checks whether the hub has a name. Does not know: how a
model is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from unspool.errors import ModelError
from unspool.loading.gguf.packages import PACKAGED

NAMES: Final = ("tale", "tale-draft", *PACKAGED)
_HUB_OPTIONS: Final = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")


def is_here(name: str) -> bool:
    """Return True if a name means a model of this machine: embedded, of a package, cached, or a path."""
    return name in NAMES or Path(name).exists() or name in _cached_names()


def check_on_hub(name: str, options: Mapping[str, Any]) -> None:
    """Check that the config of a hub id can be read, from the hub or the local cache.

    This check comes first, because each later request would repeat all retries of the hub's client.

    Args:
        options: of `from_pretrained`. With `config` or `gguf_file` the check is skipped.

    Raises:
        ModelError: if the name is unknown, or the hub cannot be reached and the local cache lacks the model.
    """
    from transformers import PreTrainedConfig

    if Path(name).is_dir() or "config" in options or "gguf_file" in options:
        return
    try:
        PreTrainedConfig.get_config_dict(name, **{each: options[each] for each in _HUB_OPTIONS if each in options})
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        raise ModelError(f"cannot load {name!r}: {reason}; {suggestion(name)}") from error


def suggestion(name: str) -> str:
    """Return advice for a name that cannot be loaded: similar names, and the command that lists all."""
    near = near_names(name)
    meant = f"did you mean {' or '.join(repr(one) for one in near)}? " if near else ""
    return f"{meant}`unspool models` lists the models on this machine"


def near_names(name: str) -> list[str]:
    """Return up to three models of this machine with similar names, the most similar first.

    These are the embedded models, models of Python packages, models in the local Hugging Face cache, and folders of
    models and GGUF files in the same folder as the path.
    """
    path = Path(name).expanduser()
    known = {one: one for one in (*NAMES, *_cached_names())}
    known |= {one.name: str(path.parent / one.name) for one in _models_in(path.parent)}
    known |= {one.rpartition("/")[2]: one for one in known.values()}
    close = difflib.get_close_matches(name, known, n=3) + difflib.get_close_matches(path.name, known, n=3)
    return list(dict.fromkeys(known[one] for one in close))[:3]


def _cached_names() -> Iterator[str]:
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        yield folder.name.removeprefix("models--").replace("--", "/")


def _models_in(parent: Path) -> Iterator[Path]:
    try:
        yield from sorted(one for one in parent.iterdir() if one.suffix == ".gguf" or (one / "config.json").is_file())
    except OSError:
        return
