"""The header of a GGUF file: its metadata, and the names and shapes of its tensors.

Reads no weights and needs no package. Format: "ggml/docs/gguf.md" of the ggml project, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from unspool.errors import ModelError

_MAGIC: Final = b"GGUF"
_START: Final = 8
"""Bytes of the magic number and the version."""
_VERSIONS: Final = (2, 3)
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """One tensor: its shape, fastest dimension first; its number format; its first byte after the header."""

    shape: tuple[int, ...]
    ggml_type: int
    offset: int

    @property
    def size(self) -> int:
        """Return the number of its elements."""
        return math.prod(self.shape)


class Header(NamedTuple):
    """The header of a GGUF file.

    metadata: key --> number or string; for an array, its length.
    tensors: name --> TensorInfo. data_start: offset of the first tensor, in bytes.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    data_start: int

    @property
    def architecture(self) -> str:
        """Return the name of the model family, such as "llama"."""
        return str(self.metadata.get("general.architecture", "unknown"))


def read_header(path: Path) -> Header:
    """Return the header of a GGUF file.

    Raises:
        ModelError: if the file is not a GGUF file, is damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            magic, version = file.read(4), int.from_bytes(file.read(4), "little")
            if magic != _MAGIC:
                raise ModelError(f"cannot load {str(path)!r}: it is not a GGUF file")
            if version not in _VERSIONS:
                raise ModelError(f"cannot load {str(path)!r}: it is of GGUF version {version}, not 2 or 3")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).read()
    except ModelError:
        raise
    except (struct.error, ValueError, TypeError, ArithmeticError) as error:
        raise ModelError(f"cannot load {str(path)!r}: its GGUF header is damaged or cut short") from error
    except OSError as error:
        raise ModelError(f"cannot load {str(path)!r}: {error.strerror or error}") from error


class _Reader:
    """Reads values one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, _START

    def read(self) -> Header:
        tensor_count, metadata_count = self._take("QQ")
        metadata = {}
        for _ in range(metadata_count):
            key = self._string()
            metadata[key] = self._value(self._take("I")[0])
        tensors = dict(self._tensor() for _ in range(tensor_count))
        alignment = metadata.get("general.alignment", 32)
        return Header(metadata, tensors, -(-self._at // alignment) * alignment)

    def _tensor(self) -> tuple[str, TensorInfo]:
        name = self._string()
        (dimensions,) = self._take("I")
        shape = self._take(f"{dimensions}Q")
        ggml_type, offset = self._take("IQ")
        return name, TensorInfo(shape, ggml_type, offset)

    def _take(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        (raw,) = self._take(f"{length}s")
        return str(raw.decode("utf-8"))

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._take(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"metadata of unknown type {kind}")
        item, count = self._take("IQ")
        if item in _NUMBERS:
            self._at += count * struct.calcsize(f"<{_NUMBERS[item]}")
        else:
            for _ in range(count):
                self._skip(item)
        return count

    def _skip(self, kind: int) -> None:
        """Go past a string without decoding it: a vocabulary has a hundred thousand."""
        if kind == _STRING:
            self._at += 8 + struct.unpack_from("<Q", self._data, self._at)[0]
        else:
            self._value(kind)
