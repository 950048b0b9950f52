"""Reading, writing and uploading generation_config.json, ours and transformers' alike.

A JSON null in such a file means "not given", as transformers writes it. An option that is given as off is therefore
written as its neutral value where it has one, and listed under `unspool_off` where it has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from unspool.errors import ModelError

CONFIG_FILE_NAME: Final = "generation_config.json"

_OFF: Final = "unspool_off"


def read_config(
    name_or_path: str | os.PathLike[str],
    config_file_name: str,
    subfolder: str | None = None,
    hub_options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Read a config stored in a folder or a hub repository; see GenerationConfig.from_pretrained.

    Returns:
        the stored attributes, and the names of the options that are off.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        path = folder / (subfolder or "") / config_file_name
    else:
        path = _download(os.fspath(name_or_path), config_file_name, {"subfolder": subfolder, **(hub_options or {})})
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}{_others(path.parent)}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(stored, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(stored).__name__}")
    return stored, stored.pop(_OFF, [])


def _others(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.json"))
    return f"; it has {', '.join(found)}" if found else ""


def _download(repository: str, config_file_name: str, hub_options: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(repository, config_file_name, **hub_options))
    except HFValidationError as error:
        raise ModelError(f"{repository!r} is neither a folder nor a hub repository: {error}") from error
    except OSError as error:
        raise ModelError(f"{config_file_name} of {repository!r} cannot be had: {error}") from error


def write_config(text: str, folder: str | os.PathLike[str], config_file_name: str) -> Path:
    """Write the text of a config into a folder; see GenerationConfig.save_pretrained. Returns the file's full path."""
    path = Path(folder).absolute() / config_file_name
    if Path(folder).is_file():
        raise ModelError(f"{os.fspath(folder)!r} is a file; a config is saved into a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def to_json(stored: Mapping[str, Any], off: list[str]) -> str:
    """Return the text of a config's file.

    Args:
        stored: attributes; those that are None are left out.
        off: names of options that are off and have no neutral value.

    Raises:
        ModelError: if a value is no JSON.
    """
    stored = {name: value for name, value in stored.items() if value is not None}
    if off:
        stored[_OFF] = off
    try:
        text = json.dumps(stored, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the config cannot be written as JSON: {error}") from error
    return text + "\n"


def _plain(value: Any) -> Any:
    """Return one of transformers' own config objects, kept among the extras, as JSON."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def upload_config(
    text: str,
    repo_id: str,
    config_file_name: str,
    *,
    private: bool | None,
    token: str | bool | None,
    commit: Mapping[str, Any],
) -> str:
    """Upload the text of a config to the hub; see GenerationConfig.push_to_hub. Returns the commit's address.

    Args:
        commit: further arguments of `HfApi.upload_file`; a message that is None gets a default.
    """
    from huggingface_hub import HfApi

    message = commit["commit_message"] or f"Upload {config_file_name}"
    try:
        api = HfApi(token=token)
        full_name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        done = api.upload_file(
            path_or_fileobj=text.encode(),
            path_in_repo=config_file_name,
            repo_id=full_name,
            **{**commit, "commit_message": message},
        )
    except Exception as error:  # the hub's own, and those of the transport under it
        raise ModelError(f"{config_file_name} cannot be uploaded to {repo_id!r}: {_reason(error)}") from error
    return str(done.commit_url)


def _reason(error: Exception) -> str:
    """Return an error's first line; the hub's own errors begin with the useful one."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
