"""Reading, writing and uploading generation_config.json, in the format of transformers.

In such a file, a JSON null means "not given". An option that is set to off is therefore written as its neutral value.
If it lacks a neutral value, its name goes into the list `unspool_off`.
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
        (stored attributes, names of the options that are off).

    Raises:
        ModelError: if the file is missing or is not a JSON object.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        path = folder / (subfolder or "") / config_file_name
    else:
        path = _download(os.fspath(name_or_path), config_file_name, {"subfolder": subfolder, **(hub_options or {})})
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} does not contain {path.name}{_others(path.parent)}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(stored, dict):
        raise ModelError(f"{path} must contain a JSON object, not {type(stored).__name__}")
    return stored, stored.pop(_OFF, [])


def _others(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.json"))
    return f"; it contains {', '.join(found)}" if found else ""


def _download(repository: str, config_file_name: str, hub_options: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(repository, config_file_name, **hub_options))
    except HFValidationError as error:
        raise ModelError(f"{repository!r} is neither a folder nor a hub repository: {error}") from error
    except OSError as error:
        raise ModelError(f"cannot download {config_file_name} of {repository!r}: {error}") from error


def write_config(text: str, folder: str | os.PathLike[str], config_file_name: str) -> Path:
    """Write the text of a config into a folder, and return the file's absolute path.

    Raises:
        ModelError: if `folder` is a file.
    """
    path = Path(folder).absolute() / config_file_name
    if Path(folder).is_file():
        raise ModelError(f"{os.fspath(folder)!r} is a file; a config is saved into a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def to_json(stored: Mapping[str, Any], off: list[str]) -> str:
    """Return the text of a config's file.

    Args:
        stored: attributes; a null value is left out.
        off: names of options that are off and lack a neutral value.

    Raises:
        ModelError: if a value cannot be written as JSON.
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
    """Return a config object of transformers, from the extras, as plain JSON."""
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
    """Upload the text of a config to the hub, and return the URL of the commit. See GenerationConfig.push_to_hub.

    Args:
        commit: further arguments of `HfApi.upload_file`, with "commit_message"; None there selects a default message.

    Raises:
        ModelError: if the hub is unreachable or rejects the upload.
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
    except Exception as error:  # errors of the hub and of its HTTP client
        raise ModelError(f"cannot upload {config_file_name} to {repo_id!r}: {_reason(error)}") from error
    return str(done.commit_url)


def _reason(error: Exception) -> str:
    """Return the first line of an error; in errors of the hub it is the useful line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
