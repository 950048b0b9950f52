"""unspool.generate in the place of model.generate: the same calls, the same tensors, and the model as it was."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers.generation import GenerateDecoderOnlyOutput

import unspool
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import IMAGE_SIZE, tiny_seq2seq
from unspool.errors import NumericsError, OptionError, PromptError
from unspool.protocols import Context
from unspool.strategies import Greedy

MODEL = tiny_model("llama", seed=5)
PROMPTS = [[11, 12, 13, 14, 15], [21, 22], [31, 32, 33]]
PADDED = torch.tensor([[0] * (5 - len(prompt)) + prompt for prompt in PROMPTS])
MASK = (PADDED != 0).long()
GROUPS = {"num_beams": 4, "diversity_penalty": 0.5}
DRAWS = {"do_sample": True, "max_new_tokens": 10}


@pytest.fixture
def model() -> transformers.PreTrainedModel:
    """A model that a test may change."""
    return copy.deepcopy(MODEL)


@pytest.fixture
def generator_state() -> Iterator[None]:
    """Fails where torch's default generator has moved."""
    before = torch.get_rng_state()
    yield
    assert torch.get_rng_state().equal(before)


def theirs(model: Any, *args: Any, **options: Any) -> Any:
    """Return what transformers returns, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(*args, **options)


def refusal(*args: Any, **options: Any) -> OptionError:
    with pytest.raises(OptionError) as caught:
        unspool.generate(MODEL, *args, **options)
    return caught.value


# --- tensors in, tensors out ---------------------------------------------------------------------------------------


def test_a_left_padded_batch_equals_its_prompts_one_by_one():
    found = unspool.generate(MODEL, PADDED, attention_mask=MASK, max_new_tokens=20, eos_token_id=[2, 40, 41, 42])
    assert found.dtype == torch.int64 and found[:, :5].equal(PADDED)
    for row, prompt in zip(found.tolist(), PROMPTS, strict=True):
        alone = unspool.generate(MODEL, torch.tensor([prompt]), max_new_tokens=20, eos_token_id=[2, 40, 41, 42])
        written = alone[0, len(prompt) :].tolist()
        assert row[5:] == written + [0] * (len(row) - 5 - len(written))


@pytest.mark.parametrize(
    "call",
    [
        {"input_ids": PADDED, "attention_mask": MASK},
        {"input_ids": PADDED},
        {"inputs": PADDED, "attention_mask": MASK.bool()},
        {"input_ids": PADDED.int(), "position_ids": (MASK.cumsum(1) - 1).clamp(min=0)},
        transformers.BatchEncoding({"input_ids": PADDED, "attention_mask": MASK}),
    ],
    ids=["mask", "inferred", "inputs", "int32", "encoding"],
)
def test_the_ways_to_give_a_batch(call: Any):
    expected = theirs(MODEL, PADDED, attention_mask=MASK, max_new_tokens=6)
    assert unspool.generate(MODEL, **call, max_new_tokens=6, use_cache=False).equal(expected)


def test_no_prompt_starts_from_the_begin_of_sequence_token(model: Any):
    assert unspool.generate(MODEL, max_new_tokens=5).equal(theirs(MODEL, max_new_tokens=5))
    assert unspool.generate(MODEL, max_new_tokens=5, bos_token_id=9)[0, 0] == 9
    model.generation_config.bos_token_id = None
    with pytest.raises(PromptError, match="bos_token_id"):
        unspool.generate(model, max_new_tokens=5)


def test_rows_of_different_length_are_filled_with_pads_or_else_ends(model: Any):
    first = int(theirs(MODEL, PADDED[1:2, 3:], max_new_tokens=1)[0, -1])
    ends = {"eos_token_id": [first, 2], "max_new_tokens": 4}
    assert unspool.generate(MODEL, PADDED, attention_mask=MASK, pad_token_id=7, **ends)[1, 5:].tolist() == [
        first,
        7,
        7,
        7,
    ]
    model.generation_config.pad_token_id = None
    assert unspool.generate(model, PADDED, attention_mask=MASK, **ends)[1, 5:].tolist() == [first] * 4
    assert unspool.generate(model, PADDED, attention_mask=MASK, **ends).equal(
        theirs(model, PADDED, attention_mask=MASK, **ends)
    )


def test_without_any_pad_rows_of_different_length_are_refused(model: Any):
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    assert unspool.generate(model, PADDED, attention_mask=MASK, max_new_tokens=4).shape == (3, 9)

    class OnceLong:
        name = "long"

        def start(self, context: Context) -> int:
            return len(context.prompt)

        def advance(self, state: int, token: int) -> int:
            return state + 1

        def ends(self, state: int, token: int) -> bool:
            return state == 6

    with pytest.raises(OptionError) as caught:
        unspool.generate(model, PADDED, attention_mask=MASK, max_new_tokens=4, criteria=[OnceLong()])
    assert caught.value.option == "pad_token_id"


def test_the_outputs_of_a_prompt_are_adjacent():
    found = unspool.generate(MODEL, PADDED, attention_mask=MASK, num_return_sequences=3, seed=4, **DRAWS)
    assert found[:, :5].equal(PADDED.repeat_interleave(3, 0))
    assert len({tuple(row) for row in found.tolist()}) == 9


def test_transformers_own_output_class_comes_back():
    found = unspool.generate(MODEL, PADDED, attention_mask=MASK, max_new_tokens=4, return_dict_in_generate=True)
    assert isinstance(found, GenerateDecoderOnlyOutput) and found.scores is None
    assert found.sequences.equal(unspool.generate(MODEL, PADDED, attention_mask=MASK, max_new_tokens=4))


def test_tensors_are_ordinary_ones():
    found = unspool.generate(MODEL, PADDED, max_new_tokens=2, return_dict_in_generate=True, output_scores=True)
    for tensor in (found.sequences, *found.scores):
        assert not tensor.is_inference() and not tensor.requires_grad


# --- lengths, defaults and layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_length": 12},
        {"max_length": 30, "max_new_tokens": 3},
        {"max_length": 25, "min_length": 20},
        {"max_new_tokens": 15, "min_new_tokens": 12, "min_length": 2},
        {"max_length": 6},
    ],
    ids=str,
)
def test_lengths_count_the_width_of_the_batch_as_in_transformers(options: dict[str, Any]):
    options = {"eos_token_id": list(range(40, 70)), "pad_token_id": 0, **options}
    found = unspool.generate(MODEL, PADDED, attention_mask=MASK, **options)
    assert found.equal(theirs(MODEL, PADDED, attention_mask=MASK, **options))


@pytest.mark.parametrize("length", [1, 5])
def test_a_longest_length_that_the_pads_fill_is_refused(length: int):
    assert refusal(PADDED[1:], attention_mask=MASK[1:], max_length=length).option == "max_length"


def test_a_forced_first_token_counts_the_width_too():
    for ids in (torch.tensor([[11]]), torch.tensor([[0, 11], [12, 13]])):
        options = {"forced_bos_token_id": 50, "begin_suppress_tokens": [51], "max_new_tokens": 3, "pad_token_id": 0}
        assert unspool.generate(MODEL, ids, **options).equal(theirs(MODEL, ids, **options))


def test_the_models_own_config_is_the_lowest_layer(model: Any):
    model.generation_config.update(max_new_tokens=7, do_sample=True, top_k=1, eos_token_id=None)
    config = transformers.GenerationConfig(max_new_tokens=5)
    ids = PADDED[:1]
    assert unspool.generate(model, ids).equal(theirs(model, ids))
    assert unspool.generate(model, ids).shape[1] == 12
    for given in (config, unspool.GenerationConfig(max_new_tokens=5)):
        assert unspool.generate(model, ids, generation_config=given).shape[1] == 10
        assert unspool.generate(model, ids, generation_config=given, max_new_tokens=3).shape[1] == 8


def test_the_ends_are_those_of_the_generation_config_at_the_time_of_the_call(model: Any):
    first = int(theirs(model, PADDED[:1], max_new_tokens=1)[0, -1])
    model.config.eos_token_id = model.generation_config.eos_token_id = first
    assert unspool.generate(model, PADDED[:1], max_new_tokens=4).shape[1] == 6
    assert unspool.generate(model, PADDED[:1], max_new_tokens=4, eos_token_id=None).shape[1] == 9
    model.generation_config.eos_token_id = None
    assert unspool.generate(model, PADDED[:1], max_new_tokens=4).shape[1] == 9


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"max_tokens": 3}, "max_tokens"),
        ({"temperature": 0.7, "strict": True}, "temperature"),
        ({"top_p": 1.5, "do_sample": True}, "top_p"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"output_scores": True, "strict": True}, "output_scores"),
        ({"output_attentions": True, "strict": True}, "output_attentions"),
        (
            {"output_hidden_states": True, "return_dict_in_generate": True, "num_beam_groups": 2} | GROUPS,
            "output_hidden_states",
        ),
        ({"logprobs": 2}, "logprobs"),
        ({"streamer": object()}, "streamer"),
        ({"stop_strings": "x"}, "stop_strings"),
        ({"seed": (1, 2)}, "seed"),
        ({"generation_config": transformers.GenerationConfig(temperature=-1.0, do_sample=True)}, "temperature"),
        ({"strategy": Greedy(), "output_logits": True, "return_dict_in_generate": True}, "output_logits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_nothing_asked_is_ignored(options: dict[str, Any], option: str):
    assert refusal(PADDED, **options).option == option


# --- draws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_seed", [torch.manual_seed, transformers.set_seed])
def test_a_global_seed_makes_calls_repeatable(set_seed: Any):
    set_seed(3)
    first = [unspool.generate(MODEL, PADDED, attention_mask=MASK, **DRAWS).tolist() for _ in range(2)]
    set_seed(3)
    assert [unspool.generate(MODEL, PADDED, attention_mask=MASK, **DRAWS).tolist() for _ in range(2)] == first
    assert first[0] != first[1]


def test_equal_rows_draw_apart_without_a_seed_and_alike_with_one():
    twice = PADDED[:1].repeat(2, 1)
    first, second = unspool.generate(MODEL, twice, **DRAWS).tolist()
    assert first != second
    first, second = unspool.generate(MODEL, twice, seed=8, **DRAWS).tolist()
    assert first == second
    first, second = unspool.generate(MODEL, twice, seed=[8, 9], **DRAWS).tolist()
    assert first != second


@pytest.mark.usefixtures("generator_state")
def test_the_generator_is_left_alone_where_nothing_is_drawn_from_it():
    unspool.generate(MODEL, PADDED, max_new_tokens=3)
    unspool.generate(MODEL, PADDED, seed=1, **DRAWS)


def test_a_seed_gives_in_company_what_it_gives_alone():
    together = unspool.generate(MODEL, PADDED, attention_mask=MASK, seed=6, **DRAWS)
    for row, prompt in zip(together.tolist(), PROMPTS, strict=True):
        alone = unspool.generate(MODEL, torch.tensor([prompt]), seed=6, **DRAWS)[0].tolist()
        assert row[5:][: len(alone) - len(prompt)] == alone[len(prompt) :]


# --- the model, and what a caller brings ----------------------------------------------------------------------------


def test_the_model_stays_as_it_was(model: Any):
    model.train()
    before = (dict(model.named_parameters()), dict(model.named_modules()), model.config.to_dict())
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention, stored = model.config._attn_implementation, model.generation_config.to_dict()
    unspool.generate(model, PADDED, max_new_tokens=4)
    after = (dict(model.named_parameters()), dict(model.named_modules()), model.config.to_dict())
    assert all(module.training for module in model.modules())
    for one, other in zip(before[:2], after[:2], strict=True):
        assert one.keys() == other.keys() and all(one[name] is other[name] for name in one)
    assert before[2] == after[2] and model.config._attn_implementation == attention
    assert model.generation_config.to_dict() == stored
    assert all(tensor.equal(values[name]) for name, tensor in model.state_dict().items())


def test_a_model_in_training_mode_writes_without_dropout():
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    found = unspool.generate(model, PADDED[:1], max_new_tokens=8)
    assert model.training and found.equal(theirs(model.eval(), PADDED[:1], max_new_tokens=8))


def test_stop_strings_need_a_tokenizer_and_end_a_row():
    tokenizer, model = byte_level(), tiny_model("llama", vocab_size=420, seed=5)
    ids = tokenizer(["Once upon"], return_tensors="pt").input_ids
    free = unspool.generate(model, ids, max_new_tokens=12)[0, ids.shape[1] :].tolist()
    stop = tokenizer.decode(free[:5])[-3:]
    cut = next(n for n in range(1, 13) if stop in tokenizer.decode(free[:n]))
    found = unspool.generate(model, ids, max_new_tokens=12, stop_strings=stop, tokenizer=tokenizer)
    assert found[0, ids.shape[1] :].tolist() == free[:cut] and cut < 12
    error = refusal(ids, stop_strings=stop)
    assert error.option == "stop_strings" and "tokenizer=" in error.hint


def test_processors_and_strategies_of_the_callers_own_take_part():
    class Only:
        """Allow one token alone."""

        name = "only"

        def start(self, context: Context) -> int:
            return 55

        def advance(self, state: int, token: int) -> int:
            return state

        def fork(self, state: int) -> int:
            return state

        def apply(self, states: Any, scores: torch.Tensor, keys: Any) -> torch.Tensor:
            return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([55]), 0.0)

    scored = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = unspool.generate(MODEL, PADDED, max_new_tokens=2, processors=[Only()], **scored)
    assert (found.sequences[:, 5:] == 55).all()
    assert all((step.isfinite().sum(1) == 1).all() for step in found.scores)
    assert found.logits[0].isfinite().all()
    expected = unspool.generate(MODEL, PADDED, max_new_tokens=5)
    assert unspool.generate(MODEL, PADDED, max_new_tokens=5, strategy=Greedy()).equal(expected)


def test_the_error_of_one_row_is_raised(model: Any):
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = torch.nan
    unspool.generate(model, PADDED, max_new_tokens=3, suppress_tokens=[77])
    with pytest.raises(NumericsError):
        unspool.generate(model, torch.tensor([[5, 6], [5, 77]]), max_new_tokens=3)
    unspool.generate(model, PADDED, max_new_tokens=3, suppress_tokens=[77])


def test_outputs_end_at_the_longest_length_of_the_model():
    model = tiny_model("gpt2", n_positions=16)
    assert unspool.generate(model, PADDED[:1], max_new_tokens=40, eos_token_id=None).shape[1] == 16
    with pytest.raises(PromptError):
        unspool.generate(model, torch.full((1, 16), 5))


def test_half_precision_models_are_scored_in_single(model: Any):
    found = unspool.generate(
        model.bfloat16(), PADDED, max_new_tokens=2, return_dict_in_generate=True, output_scores=True
    )
    assert found.scores[0].dtype == torch.float32


def test_our_own_global_seed_reaches_the_drop_in():
    model, ids = tiny_model("gpt2"), torch.tensor([[5, 6, 7], [8, 9, 10]])
    options = {"do_sample": True, "max_new_tokens": 8, "attention_mask": torch.ones_like(ids)}
    try:
        unspool.set_seed(3)
        first = [unspool.generate(model, ids, **options).tolist() for _ in range(2)]
        unspool.set_seed(3)
        assert [unspool.generate(model, ids, **options).tolist() for _ in range(2)] == first
        assert first[0] != first[1]
    finally:
        unspool.set_seed(None)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_encoder_decoder_without_an_input_reads_the_begin_of_sequence_token(beams: int) -> None:
    for family in ("t5", "bart"):
        model, call = tiny_seq2seq(family), {"num_beams": beams, "max_new_tokens": 5, "bos_token_id": 1}
        assert unspool.generate(model, **call).equal(theirs(model, **call))


# --- pads elsewhere than on the left --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"penalty_alpha": 0.6, "top_k": 4}], ids=str)
def test_pads_on_the_right_and_between_tokens_are_left_out(options: dict[str, Any]) -> None:
    ids = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 0, 0, 0], [31, 0, 32, 33, 0]])
    call = {"attention_mask": (ids != 0).long(), "max_new_tokens": 8, "pad_token_id": 0, **options}
    with pytest.warns(UserWarning, match="row 1 of the batch is padded on the right") as caught:
        found = unspool.generate(MODEL, ids, **call)
    assert len(caught) == 1 and found[:, :5].equal(ids)
    expected = unspool.generate(MODEL, PADDED, attention_mask=MASK, max_new_tokens=8, pad_token_id=0, **options)
    assert found[:, 5:].equal(expected[:, 5:])
    with pytest.raises(PromptError, match="padding_side='left'"):
        unspool.generate(MODEL, ids, strict=True, **call)


def test_a_hole_in_the_mask_acts_as_in_transformers() -> None:
    ids, mask = torch.tensor([[11, 12, 0, 13], [21, 22, 23, 24]]), torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])
    with pytest.warns(UserWarning, match="row 0 of the batch has pads between its tokens"):
        found = unspool.generate(MODEL, ids, attention_mask=mask, max_new_tokens=8)
    assert found.equal(theirs(MODEL, ids, attention_mask=mask, max_new_tokens=8))


# --- positional arguments -------------------------------------------------------------------------------------------


def test_positional_arguments_are_those_of_transformers() -> None:
    config = transformers.GenerationConfig(max_new_tokens=5, pad_token_id=0, eos_token_id=2)
    no_forty = transformers.LogitsProcessorList([transformers.SuppressTokensLogitsProcessor(list(range(0, 97, 3)))])
    stop = transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(9)])
    arguments = (PADDED, config, no_forty, stop, lambda row, ids: list(range(1, 97)), False, None, None)
    found = unspool.generate(MODEL, *arguments, attention_mask=MASK)
    assert found.equal(theirs(MODEL, *arguments, attention_mask=MASK))
    assert found.equal(unspool.generate(MODEL, *arguments, attention_mask=MASK, strict=True)) and found.shape == (3, 9)


def test_a_mask_in_the_place_of_the_config_is_refused_without_its_numbers() -> None:
    error = refusal(PADDED, MASK)
    assert error.option == "generation_config" and "attention_mask=mask" in error.hint
    assert "got Tensor of shape (3, 5)" in str(error)


def test_parameters_have_the_order_of_model_generate() -> None:
    ours = list(inspect.signature(unspool.generate).parameters.values())
    expected = list(inspect.signature(transformers.GenerationMixin.generate).parameters.values())
    positional = [each.name for each in ours if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional[1:] == [each.name for each in expected if each.kind is each.POSITIONAL_OR_KEYWORD][1:]


def test_an_image_can_be_the_first_argument_beside_a_prompt() -> None:
    model = tiny_seq2seq("vit-gpt2")
    image, prompt = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE), torch.tensor([[3, 5], [3, 7]])
    expected = theirs(model, image, decoder_input_ids=prompt, max_new_tokens=4)
    assert unspool.generate(model, image, input_ids=prompt, max_new_tokens=4).equal(expected)
    with pytest.raises(OptionError, match="`inputs` cannot be given beside `input_ids`"):
        unspool.generate(MODEL, image, input_ids=prompt)
