"""Reading and writing generation_config.json, ours and transformers' alike.

A JSON null in such a file means "not given", as transformers writes it. An option that is given as off is therefore
written as its neutral value where it has one, and listed under `unspool_off` where it has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from unspool.config.generation import OPTIONS, GenerationConfig
from unspool.errors import MissingExtra, ModelError

_OFF: Final = "unspool_off"


def read_config(
    name_or_path: str | os.PathLike[str], config_file_name: str, hub_options: Mapping[str, Any]
) -> GenerationConfig:
    """Return the config stored in a folder or a hub repository; see GenerationConfig.from_pretrained."""
    folder = Path(name_or_path)
    path = folder / config_file_name if folder.is_dir() else _download(str(name_or_path), config_file_name, hub_options)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {config_file_name}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(stored, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(stored).__name__}")
    off = stored.pop(_OFF, [])
    config = GenerationConfig.from_stored(stored)
    return config.replace(**dict.fromkeys(off)) if off else config


def _download(repository: str, config_file_name: str, hub_options: Mapping[str, Any]) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise MissingExtra("reading a config from the hub needs: pip install huggingface_hub") from error
    try:
        return Path(hf_hub_download(repository, config_file_name, **hub_options))
    except HFValidationError as error:
        raise ModelError(f"{repository!r} is neither a folder nor a hub repository: {error}") from error
    except OSError as error:
        raise ModelError(f"{config_file_name} of {repository!r} cannot be had: {error}") from error


def write_config(config: GenerationConfig, folder: str | os.PathLike[str], config_file_name: str) -> None:
    """Write the config into a folder; see GenerationConfig.save_pretrained."""
    values = config.to_dict()
    off = [name for name, value in values.items() if value is None and OPTIONS[name].off is None]
    neutral = {name: OPTIONS[name].off for name, value in values.items() if value is None and name not in off}
    stored: dict[str, Any] = {**config.extras, **values, **neutral}
    stored = {name: value for name, value in stored.items() if value is not None}
    if off:
        stored[_OFF] = off
    text = json.dumps(stored, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / config_file_name).write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return one of transformers' own config objects, kept among the extras, as JSON."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
