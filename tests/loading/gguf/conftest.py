"""A cache of its own for each test, and one tiny GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.gguf_files import write_gguf
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let converted files lie here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "unspool" / "gguf"


@pytest.fixture(scope="session")
def tiny() -> PreTrainedModel:
    tokenizer = byte_level()
    return tiny_model("llama", vocab_size=len(tokenizer), intermediate_size=64, eos_token_id=tokenizer.eos_token_id)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory, tiny: PreTrainedModel) -> Path:
    pytest.importorskip("gguf")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny, byte_level())
