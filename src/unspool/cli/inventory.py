"""Inventory of local models: in this package, in other installed packages, and in the local Hugging Face cache.

Owns: finding and measuring models without loading them. Does not know: how they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from unspool.errors import ModelError
from unspool.loading.gguf.header import read_header
from unspool.loading.gguf.packages import PACKAGED, find_packaged

EMBEDDED = Path(str(files("unspool"))) / "tale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model on disk.

    title: name in the table.
    name: value for --model; None for the embedded model, which is the default.
    place: "embedded", "installed" or "cached". folder: folder of its files.
    parameters: number of parameters; None if unknown.
    size: bytes on disk.
    bits_per_byte: bits per byte on held-out text; None if it was not measured.
    """

    title: str
    name: str | None
    place: str
    folder: Path
    parameters: int | None
    size: int
    bits_per_byte: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "title": self.title,
            "name": self.name,
            "place": self.place,
            "folder": str(self.folder),
            "parameters": self.parameters,
            "size": self.size,
            "bits_per_byte": self.bits_per_byte,
        }


def embedded_models(folder: Path = EMBEDDED) -> list[Model]:
    """Return the models of the package: first the default model of `unspool.load()`, then its draft model.

    Measurements come from figures.json in the first model's folder, by folder name.
    """
    figures = folder / "figures.json"
    measured = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    found = [one for one in (folder, *sorted(folder.glob("*/"))) if (one / "model.safetensors").exists()]
    return [
        Model(
            title=one.relative_to(folder.parent).as_posix().replace("/", "-"),
            name=None if one == folder else f"{folder.name}-{one.name}",
            place="embedded",
            folder=one,
            parameters=count_parameters(one),
            size=sum(path.stat().st_size for path in one.iterdir() if path.is_file()),
            bits_per_byte=measured.get(one.name, {}).get("bits_per_byte_valid"),
        )
        for one in found
    ]


def installed_models() -> list[Model]:
    """Return the models of other installed packages, without importing the packages."""
    found = [(name, find_packaged(name)) for name in PACKAGED]
    return [
        Model(
            title=name,
            name=name,
            place="installed",
            folder=path.parent,
            parameters=_count_gguf(path),
            size=path.stat().st_size,
        )
        for name, path in found
        if path is not None
    ]


def _count_gguf(path: Path) -> int | None:
    """Return the number of parameters in a GGUF file; None if the file is damaged."""
    try:
        return sum(tensor.size for tensor in read_header(path).tensors.values())
    except ModelError:
        return None


def cached_models() -> list[Model]:
    """Return the models of the local Hugging Face cache, sorted by name; an empty list without a cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    found = [repository for repository in repositories if repository.repo_type == "model" and repository.revisions]
    return [_cached(repository) for repository in sorted(found, key=lambda repository: repository.repo_id)]


def _cached(repository: Any) -> Model:
    newest = max(repository.revisions, key=lambda revision: revision.last_modified)
    return Model(
        title=repository.repo_id,
        name=repository.repo_id,
        place="cached",
        folder=newest.snapshot_path,
        parameters=count_parameters(newest.snapshot_path),
        size=repository.size_on_disk,
    )


def count_parameters(folder: Path) -> int | None:
    """Return the number of parameters in the folder's safetensors files, from their headers; None without such files.

    Raises:
        OSError: if a file cannot be read.
    """
    headers = [header for path in sorted(folder.glob("*.safetensors")) if (header := _header(path)) is not None]
    return sum(count for header in headers for count in _counts(header)) if headers else None


def _header(path: Path) -> dict[str, Any] | None:
    """Return the header of a safetensors file (8 bytes of length, then JSON); None for any other file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return None
    return header if isinstance(header, dict) else None


def _counts(header: dict[str, Any]) -> Iterator[int]:
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for length in tensor["shape"]:
                count *= length
            yield count
