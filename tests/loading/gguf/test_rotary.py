"""Scaled rotary embeddings: read as they are, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import unspool
from tests.gguf_files import greedy, write_gguf
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from unspool import ModelError

pytest.importorskip("gguf")

IDS = [5, 60, 71, 9] * 6
SCALED = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def scaled(parameters: dict[str, Any]) -> Any:
    changes = {"vocab_size": len(byte_level()), "intermediate_size": 64, "hidden_size": 64, "num_attention_heads": 2}
    return tiny_model("llama", **changes, rope_parameters=parameters)


def test_the_factors_of_llama_3_become_its_parameters(tmp_path: Path) -> None:
    model = scaled(SCALED)
    plain = ROPE_INIT_FUNCTIONS["llama3"](scaled({**SCALED, "factor": 1.0}).config, torch.device("cpu"))[0]
    factors = plain / ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))[0]
    assert factors.max() == 8.0 and factors.min() == 1.0

    def extend(writer: Any) -> None:
        writer.add_tensor("rope_freqs.weight", factors.numpy().astype(np.float32))

    lm = unspool.load(write_gguf(tmp_path / "x.gguf", model, byte_level(), extend=extend))
    written = lm.generate(IDS, max_new_tokens=8)
    assert list(written.completions[0].token_ids) == greedy(model, IDS, max_new_tokens=8)
    lm.save_pretrained(tmp_path / "saved")
    assert AutoConfig.from_pretrained(tmp_path / "saved").rope_parameters == SCALED


@pytest.mark.parametrize(("kind", "more"), [("linear", {}), ("yarn", {"original_max_position_embeddings": 64})])
def test_linear_and_yarn_scaling_are_read(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    model = scaled({"rope_theta": 10000.0, "rope_type": kind, "factor": 4.0, **more})

    def extend(writer: Any) -> None:
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(4.0)
        if more:
            writer.add_rope_scaling_orig_ctx_len(64)

    lm = unspool.load(write_gguf(tmp_path / "x.gguf", model, byte_level(), extend=extend))
    assert list(lm.generate(IDS, max_new_tokens=8).completions[0].token_ids) == greedy(model, IDS, max_new_tokens=8)
    lm.save_pretrained(tmp_path / "saved")
    stored = AutoConfig.from_pretrained(tmp_path / "saved").rope_parameters
    assert {name: stored[name] for name in ("rope_type", "factor", *more)} == {"rope_type": kind, "factor": 4.0, **more}


@pytest.mark.parametrize(
    ("extend", "message"),
    [
        (
            lambda writer: writer.add_tensor("rope_factors_long.weight", np.ones(16, np.float32)),
            "with the length",
        ),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.full(16, 3, np.float32)), "in an unknown way"),
        (lambda writer: writer.add_string("llama.rope.scaling.type", "longrope"), "is scaled as 'longrope'"),
    ],
)
def test_other_scaling_is_refused(extend: Any, message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", scaled({"rope_theta": 10000.0, "rope_type": "default"}), extend=extend)
    with pytest.raises(ModelError, match=f"x.gguf', a GGUF file of architecture 'llama': .*{message}"):
        unspool.load(path)
