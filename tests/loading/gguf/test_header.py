"""The header of a GGUF file, against llama.cpp's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from tests.gguf_files import write_gguf
from tests.text.tokenizers import byte_level
from unspool import ModelError
from unspool.loading.gguf.header import read_header


def test_a_header_is_what_llama_cpps_reader_reads(tiny: PreTrainedModel, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")

    def extend(writer: object) -> None:
        writer.add_bool("yes", True)  # type: ignore[attr-defined]
        writer.add_float64("wide", 0.1)  # type: ignore[attr-defined]
        writer.add_int8("small", -5)  # type: ignore[attr-defined]
        writer.add_array("numbers", [1, 2, 3])  # type: ignore[attr-defined]

    path = write_gguf(tmp_path / "x.gguf", tiny, byte_level(), weights="Q8_0", extend=extend)
    header, reader = read_header(path), gguf.GGUFReader(path)
    assert header.architecture == "llama" and header.data_start == reader.data_offset
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            expected = field.contents()
            assert header.metadata[name] == (len(expected) if isinstance(expected, list) else expected), name
    assert {name: (one.shape, one.ggml_type, one.size) for name, one in header.tensors.items()} == {
        one.name: (tuple(one.shape.tolist()), one.tensor_type, one.n_elements) for one in reader.tensors
    }
    assert all(header.data_start + header.tensors[one.name].offset == one.data_offset for one in reader.tensors)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), bit=st.integers(0, 7))
def test_a_damaged_header_is_read_or_refused(at: int, bit: int, tiny_gguf: Path) -> None:
    content = bytearray(tiny_gguf.read_bytes())
    content[at] ^= 1 << bit
    damaged = tiny_gguf.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        read_header(damaged)
    except ModelError as error:
        assert "damaged.gguf" in str(error)
