"""guidance_scale and negative prompts against transformers' own generate."""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import unspool
from tests.tiny_models import tiny_model

PROMPTS = torch.tensor([[5, 3, 8, 1], [9, 4, 7, 2]])
NEGATIVES = torch.tensor([[11, 6], [2, 13]])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
@pytest.mark.parametrize("negative", [True, False])
def test_the_tokens_are_those_of_transformers(family, scale, options, negative):
    model = tiny_model(family)
    call = {"guidance_scale": scale, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, **options}
    if negative:
        call["negative_prompt_ids"] = NEGATIVES
    ours = unspool.generate(model, PROMPTS, **call)
    theirs = model.generate(PROMPTS, attention_mask=torch.ones_like(PROMPTS), **call)
    assert ours.tolist() == theirs.tolist()


class Guidance(LogitsProcessor):
    """Guidance that looks the negative rows up anew: transformers' own leaves them behind when beams change places."""

    def __init__(self, model, negatives, scale, num_beams):
        self.model, self.scale = model, scale
        self.negatives = negatives.repeat_interleave(num_beams, dim=0)

    def __call__(self, input_ids, scores):
        with torch.no_grad():
            rows = self.model(torch.cat([self.negatives, input_ids[:, PROMPTS.shape[1] :]], dim=1)).logits[:, -1]
        wanted, unwanted = torch.log_softmax(scores, -1), torch.log_softmax(rows, -1)
        return unwanted + self.scale * (wanted - unwanted)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("num_beams", [2, 4])
def test_beams_keep_their_own_negative_rows(family, scale, num_beams):
    model = tiny_model(family)
    call = {"max_new_tokens": 10, "num_beams": num_beams, "pad_token_id": 1, "return_dict_in_generate": True}
    guidance = {"negative_prompt_ids": NEGATIVES, "guidance_scale": scale}
    ours = unspool.generate(model, PROMPTS, attention_mask=torch.ones_like(PROMPTS), **guidance, **call)
    theirs = model.generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        output_scores=True,
        logits_processor=LogitsProcessorList([Guidance(model, NEGATIVES, scale, num_beams)]),
        **call,
    )
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, atol=1e-4, rtol=1e-4)


def test_a_negative_prompt_alone_is_ignored_with_a_warning():
    plain = unspool.generate(tiny_model("gpt2"), PROMPTS)
    with pytest.warns(UserWarning, match="negative_prompt_ids.*guidance_scale"):
        assert unspool.generate(tiny_model("gpt2"), PROMPTS, negative_prompt_ids=NEGATIVES).equal(plain)
    with pytest.raises(unspool.OptionError, match="negative_prompt_ids.*guidance_scale"):
        unspool.generate(tiny_model("gpt2"), PROMPTS, negative_prompt_ids=NEGATIVES, strict=True)


def test_negative_prompts_have_one_row_or_one_per_prompt():
    with pytest.raises(unspool.OptionError, match="one row, or one for each of the 2 prompts"):
        unspool.generate(tiny_model("gpt2"), PROMPTS, negative_prompt_ids=NEGATIVES.repeat(2, 1), guidance_scale=2.0)
    with pytest.raises(unspool.OptionError, match="negative_prompt_attention_mask.*without"):
        unspool.generate(tiny_model("gpt2"), PROMPTS, negative_prompt_attention_mask=NEGATIVES, guidance_scale=2.0)


def test_padded_negative_prompts_lose_their_pads():
    model = tiny_model("gpt2")
    padded, mask = torch.tensor([[0, 0, 11, 6], [1, 3, 2, 13]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"guidance_scale": 2.0, "max_new_tokens": 6}
    both = unspool.generate(model, PROMPTS, negative_prompt_ids=padded, negative_prompt_attention_mask=mask, **options)
    one = unspool.generate(model, PROMPTS[:1], negative_prompt_ids=torch.tensor([[11, 6]]), **options)
    assert both[0].tolist() == one[0].tolist()
