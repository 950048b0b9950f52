"""Real tokenizers, built offline: the kinds that language models come with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MIXED = [
    "Once upon a time there was a king who had a daughter, and she was very fair.",
    "The king's daughter didn't laugh. Nobody could make her laugh! Why? They've tried; I'm sure.",
    "STOP and END are words; so is </s> in a page, and \n\nUser: begins a turn.",
    "从前有一个国王，他有一个女儿。她很美丽。",
    "كان هناك ملك له ابنة جميلة",
    "naïve café Zürich e\u0301 a\u0308 n\u0303",
    "🙂👍🏽👩\u200d👩\u200d👧 🎉🎉",
    "def f(x):\n    return x + 1\n\tdone",
]


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE as in GPT-2: rare characters fall into several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(MIXED, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", extra_special_tokens=["<|turn|>"])


def _sentencepiece_decoder() -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(steps)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """BPE with a space mark and byte tokens for unknown characters, as Llama and Mistral have it."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
    words.train_from_iterator([line for line in MIXED if line.isascii()], trainer)
    trained = words.get_vocab()
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [token for token in sorted(trained, key=trained.__getitem__) if token not in tokens]
    model = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        _merges(words),
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = _sentencepiece_decoder()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


@cache
def word_piece(clean: bool = False) -> PreTrainedTokenizerFast:
    """WordPiece as in BERT; with `clean`, spaces before punctuation and in contractions are taken out afterwards."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(MIXED, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", sep_token="[SEP]", clean_up_tokenization_spaces=clean
    )


class ContinuationTokenizer:
    """The rule of CTRL's slow tokenizer: "@@" at the end of a piece says that the next one joins it."""

    all_special_ids: tuple[int, ...] = ()

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = list(pieces)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return " ".join(self.pieces[i] for i in ids).replace("@@ ", "").strip()


class Counting:
    """Wraps a tokenizer and counts what it is asked to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.calls, self.ids, self.longest = tokenizer, 0, 0, 0

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        self.calls += 1
        self.ids += len(ids)
        self.longest = max(self.longest, len(ids))
        return str(self.tokenizer.decode(ids, **options))
