"""A tokenizer and a processor for tiny multimodal models. A placeholder in a text becomes tokens of an input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_multimodal import IMAGE, START, VOCAB_SIZE

MARK = "@"
"""The placeholder of an image or audio input."""

LETTERS = "abcdefghijklmnopqrstuvwxyz /:?"


@cache
def letters(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per letter, and one for images and audio."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, **{letter: 3 + place for place, letter in enumerate(LETTERS)}}
    vocab |= {f"<{number}>": number for number in range(len(vocab), VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(f"<{IMAGE}>"), AddedToken("</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", padding_side=padding_side
    )


class TinyProcessor:
    """Reads texts with placeholders, as processors of transformers do.

    Args:
        tokenizer: of the text between placeholders.
        family: a key of `tiny_multimodal.FAMILIES`.
    """

    def __init__(self, tokenizer: Any, family: str) -> None:
        self.tokenizer, self.family = tokenizer, family
        self.calls = 0

    def __call__(
        self, text: str, images: Sequence[Any] | None = None, *, return_tensors: str = "pt"
    ) -> dict[str, torch.Tensor]:
        """Return ids, mask and pixels. Refuses a text with another number of placeholders than images."""
        self.calls += 1
        parts, pictures = text.split(MARK), list(images or ())
        if len(parts) - 1 != len(pictures):
            raise ValueError(f"{len(parts) - 1} placeholders and {len(pictures)} images")
        ids = self._ids(parts[0])
        for part in parts[1:]:
            ids += [START, *[IMAGE] * 4, *self._ids(part)]
        found = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        if self.family == "qwen2_5_vl":
            found["mm_token_type_ids"] = (found["input_ids"] == IMAGE).long()
        if pictures:
            pixels = torch.stack([torch.as_tensor(each, dtype=torch.float32) for each in pictures])
            found["pixel_values"] = pixels
            if self.family.startswith("instructblip"):  # the Q-Former reads the text too
                asked = torch.tensor([self._ids(text.replace(MARK, ""))])
                found |= {"qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked)}
            if self.family == "qwen2_5_vl":
                found["pixel_values"] = pixels.flatten(0, 1)
                found["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(pictures))
        return found

    def _ids(self, text: str) -> list[int]:
        return [3 + ord(letter) % 80 for letter in text]

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> dict[str, torch.Tensor]:
        """Return a conversation as one text, each turn with its role."""
        assert options["tokenize"] and options["return_dict"] and options["return_tensors"] == "pt"
        pictures, page = [], ""
        for message in conversation:
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "image":
                    pictures.append(part["image"])
                page += part["text"] if part["type"] == "text" else MARK
            page += f"/{message['role']}/"
        return self(page + ("" if options["continue_final_message"] else "a:"), pictures)
