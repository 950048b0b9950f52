"""The pipeline "automatic-speech-recognition" returns what transformers' own returns."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AddedToken, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

import unspool
from tests.parity.test_dropin_fuzz import quietly
from tests.tiny_models import tiny_model, widen

END = "<|endoftext|>"
SPECIAL = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>")
SPECIAL += ("<|nospeech|>", "<|notimestamps|>")
SAMPLES = np.random.default_rng(0).normal(size=16_000 * 5 // 2).astype(np.float32) / 10


@cache
def tokenizer() -> WhisperTokenizer:
    """Return a tokenizer of bytes, and of timestamps up to one second."""
    vocab = {letter: index for index, letter in enumerate((*sorted(ByteLevel.alphabet()), END))}
    made = WhisperTokenizer(vocab=vocab, merges=[], unk_token=END, bos_token=END, eos_token=END, pad_token=END)
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    made.add_tokens([AddedToken(f"<|{index * 0.02:.2f}|>", special=False) for index in range(51)])
    return made


@cache
def listener() -> WhisperForConditionalGeneration:
    """Return a tiny random Whisper with windows of one second."""
    ids = {name: tokenizer().convert_tokens_to_ids(name) for name in (END, *SPECIAL)}
    layers = {f"{part}_{name}": value for part in ("encoder", "decoder")
              for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()}  # fmt: skip
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ids[END])
    config = WhisperConfig(
        **layers, **ends, vocab_size=len(tokenizer()), d_model=32, num_mel_bins=8, max_source_positions=50,
        max_target_positions=64, decoder_start_token_id=ids[SPECIAL[0]], suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
        widen(model, lambda shape: torch.randn(shape) * 0.25)
    stored = model.generation_config
    stored.lang_to_id = {name: ids[name] for name in SPECIAL[1:3]}
    stored.task_to_id = {"translate": ids["<|translate|>"], "transcribe": ids["<|transcribe|>"]}
    stored.no_timestamps_token_id, stored.is_multilingual = ids["<|notimestamps|>"], True
    stored.alignment_heads, stored.suppress_tokens = [[0, 1], [1, 2]], [ids[name] for name in SPECIAL[:-1]]
    return model.eval()


def made(make: Any) -> Any:
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, hop_length=160, chunk_length=1, n_fft=400)
    task = "automatic-speech-recognition"
    return make(task, model=copy.deepcopy(listener()), tokenizer=tokenizer(), feature_extractor=extractor)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_timestamps": True},
        {"return_timestamps": "word"},
        {"return_timestamps": True, "return_language": True},
        {"chunk_length_s": 1},
        {"chunk_length_s": 1, "batch_size": 3, "return_timestamps": True},
        {"chunk_length_s": 1, "stride_length_s": (0.2, 0.1), "generate_kwargs": {"language": "de", "num_beams": 1}},
    ],
    ids=str,
)
def test_results_are_those_of_transformers(options: dict[str, Any]) -> None:
    given = copy.deepcopy(options)
    given["generate_kwargs"] = {"max_new_tokens": 12, **given.get("generate_kwargs", {})}
    expected = quietly(made(transformers.pipeline), SAMPLES.copy(), **copy.deepcopy(given))
    assert expected["text"] and quietly(made(unspool.pipeline), SAMPLES.copy(), **given) == expected


def test_a_language_model_has_its_own_method() -> None:
    with pytest.raises(unspool.ModelError, match="use its `transcribe`"):
        unspool.pipeline("automatic-speech-recognition", unspool.load(tiny_model("gpt2")))
