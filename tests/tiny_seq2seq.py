"""Tiny random models that read a source, one of each family, and random sources for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.tiny_models import VOCAB_SIZE, widen
from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime
from unspool.types import Feed, Rows, Seq, Source

MAX_LENGTH = 48
NUM_MEL_BINS, NUM_FRAMES = 8, 32
IMAGE_SIZE = 16

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 3}
_T5 = {
    **_IDS,
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
_LAYERS = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
_BART = {
    **_IDS,
    **_LAYERS,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": MAX_LENGTH,
    "forced_eos_token_id": None,
}
_WHISPER = {
    **_IDS,
    **_LAYERS,
    "vocab_size": VOCAB_SIZE,
    "num_mel_bins": NUM_MEL_BINS,
    "max_source_positions": NUM_FRAMES // 2,
    "max_target_positions": MAX_LENGTH,
    "begin_suppress_tokens": None,
    "suppress_tokens": None,
}
_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}
_DECODER = {"is_decoder": True, "add_cross_attention": True, "vocab_size": VOCAB_SIZE}
_BERT = {
    **_DECODER,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_LENGTH,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", _T5),
    "t5-gated": ("T5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5", _T5),
    "bart": ("Bart", _BART),
    "mbart": ("MBart", _BART),
    "pegasus": ("Pegasus", _BART),
    "marian": ("MarianMT", _BART),
    "whisper": ("Whisper", _WHISPER),
    "vit-gpt2": ("GPT2", {**_DECODER, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH}),
    "vit-bert": ("Bert", _BERT),
    "trocr": (
        "TrOCR",
        {
            **_DECODER,
            "d_model": 32,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": MAX_LENGTH,
            "cross_attention_hidden_size": 24,
        },
    ),
    "git": (
        "Git",
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": MAX_LENGTH,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "vision_config": _VIT,
        },
    ),
}
"""Families, with the class of the model (or of its decoder) and what makes its config tiny."""

TEXT = tuple(name for name in FAMILIES if FAMILIES[name][0] in ("T5", "MT5", "Bart", "MBart", "Pegasus", "MarianMT"))
IMAGE = ("vit-gpt2", "vit-bert", "trocr", "git")


def _model(family: str, changes: dict[str, Any]) -> PreTrainedModel:
    name, fields = FAMILIES[family]
    fields = {**fields, **changes}
    if family in ("vit-gpt2", "vit-bert", "trocr"):
        decoder = getattr(transformers, f"{name}Config")(**fields)
        config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.ViTConfig(**_VIT), decoder, tie_word_embeddings=False, **_IDS
        )
        return transformers.VisionEncoderDecoderModel(config)
    config = getattr(transformers, f"{name.removesuffix('MT')}Config" if name == "MarianMT" else f"{name}Config")(
        **fields
    )
    ending = {"MarianMT": "", "Git": "ForCausalLM"}.get(name, "ForConditionalGeneration")
    return getattr(transformers, f"{name}Model" if name == "MarianMT" else f"{name}{ending}")(config)


def tiny_seq2seq(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Return a tiny random model in evaluation mode; the same weights for the same arguments.

    Args:
        family: a key of FAMILIES.
        changes: fields of the config (for image models: of the decoder's) to change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(family, changes)
        widen(model, lambda shape: torch.randn(shape) * 0.25)
    # Random weights rarely end; what a released checkpoint would store of special tokens is put here.
    for name, value in _IDS.items():
        if getattr(model.generation_config, name, None) is None:
            setattr(model.generation_config, name, getattr(model.config, name, None) or value)
    return model.to(dtype).eval()


def random_source(family: str, seed: int = 0, length: int = 7) -> Source:
    """Return a source for a family; length: of a text, in tokens."""
    generator = torch.Generator().manual_seed(seed)
    if family == "whisper":
        return Source(inputs={"input_features": torch.randn(1, NUM_MEL_BINS, NUM_FRAMES, generator=generator)})
    if family in IMAGE:
        return Source(inputs={"pixel_values": torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)})
    ids = torch.randint(4, VOCAB_SIZE, (1, length), generator=generator)
    return Source(inputs={"input_ids": ids}, token_ids=tuple(ids[0].tolist()))


class Sourced:
    """A runtime that reads the same source for every sequence, so that tests which know of no source can run on it."""

    def __init__(self, runtime: Seq2SeqRuntime, source: Source) -> None:
        self.runtime, self.source = runtime, source
        self.info = replace(runtime.info, needs_source=False)

    @property
    def live(self) -> Collection[Seq]:
        return self.runtime._slots.live

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        return self.runtime.forward(
            [feed if feed.seq in self.live else replace(feed, source=self.source) for feed in feeds]
        )

    def fork(self, seq: Seq, child: Seq) -> None:
        self.runtime.fork(seq, child)

    def truncate(self, seq: Seq, keep: int) -> int:
        return self.runtime.truncate(seq, keep)

    def release(self, seq: Seq) -> None:
        self.runtime.release(seq)

    def check(self) -> None:
        self.runtime.check()
