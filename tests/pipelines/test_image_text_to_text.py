"""The pipeline "image-text-to-text" returns what transformers' own returns; images through a real image processor."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import unspool
from tests.media import letters
from tests.tiny_models import tiny_model
from tests.tiny_multimodal import IMAGE, tiny_multimodal

MARK = f"<{IMAGE}>"
LENGTHS: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}"
    + MARK
    + "{% else %}{{ part.text }}{% endif %}{% endfor %}/{% endfor %}"
)


@cache
def processor() -> LlavaProcessor:
    """Return a processor with one token per letter, and images of 8 x 8 pixels in 4 patches."""
    images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return LlavaProcessor(
        images,
        letters("left"),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=MARK,
        chat_template=TEMPLATE,
    )


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def made(make: Any) -> Any:
    return make("image-text-to-text", model=tiny_multimodal("llava"), processor=processor())


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_results_are_those_of_transformers(options: dict[str, Any]) -> None:
    calls: list[dict[str, Any]] = [
        {"images": picture(1), "text": f"{MARK}what?"},
        {"images": [picture(1), picture(2)], "text": [f"{MARK}what is this?", f"{MARK}who?"]},
        {"images": picture(3), "text": f"{MARK}what?", "return_full_text": False},
    ]
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "who?"}]}]
    calls.append({"text": chat})
    for call in calls:
        expected = made(transformers.pipeline)(**call, generate_kwargs={**LENGTHS, **options})
        assert made(unspool.pipeline)(**call, generate_kwargs={**LENGTHS, **options}) == expected


def test_a_language_model_reads_images_of_pillow() -> None:
    model = tiny_multimodal("llava")
    lm = unspool.load(model, tokenizer=processor().tokenizer, processor=processor())
    for number in (1, 2):
        inputs = processor()(images=picture(number), text=f"{MARK}what?", return_tensors="pt")
        expected = model.generate(**inputs, **LENGTHS)[0, inputs["input_ids"].shape[1] :].tolist()
        written = lm.generate(f"{MARK}what?", images=picture(number), **LENGTHS)
        assert list(written.completions[0].token_ids) == expected


def test_a_language_model_has_its_own_methods() -> None:
    with pytest.raises(unspool.ModelError, match="use `images` of its `generate` or `chat`"):
        unspool.pipeline("image-text-to-text", unspool.load(tiny_model("gpt2")))
