"""Rows that several sequences or layers say together: contrast, guidance, and both inside every strategy."""

import math

import pytest
import torch

from tests.toys import drain, mixing_toy, request, results, toy
from unspool.engine import Engine
from unspool.engine.combine_logits import cfg_logits, dola_logits, layers_of
from unspool.errors import OptionError
from unspool.runtimes.toy import ToyRuntime
from unspool.types import ModelInfo

PROMPT, NEGATIVE = (5, 3, 8), (2, 9)


def logs(*probabilities):
    return torch.tensor(probabilities).log()


def test_contrast_worked_example():
    found = dola_logits(logs(0.6, 0.3, 0.1, 0.0), logs(0.2, 0.6, 0.1, 0.1)[None])
    torch.testing.assert_close(found, torch.tensor([1.0986, -0.6931, 0.0, -math.inf]), atol=1e-4, rtol=0)


def test_guidance_worked_example():
    found = cfg_logits(logs(0.5, 0.25, 0.25), logs(0.25, 0.25, 0.5), 2.0)
    torch.testing.assert_close(found, logs(1.0, 0.25, 0.125))


def test_contrast_takes_the_layer_that_differs_most_by_jensen_shannon():
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        final, inner = torch.randn(7, generator=generator) * 2, torch.randn(4, 7, generator=generator) * 2
        p = torch.softmax(final, -1)
        divergences = []
        for row in inner:
            q = torch.softmax(row, -1)
            middle = (p + q) / 2
            # The divergence from the middle, as transformers 4 measures it.
            divergences.append(sum((m * (m / a).log()).sum() for m, a in ((middle, p), (middle, q))))
        best = int(torch.stack(divergences).argmax())
        torch.testing.assert_close(dola_logits(final, inner), dola_logits(final, inner[best : best + 1]))


@pytest.mark.parametrize(
    ("named", "layers", "tied", "expected"),
    [
        ("low", 12, False, (0, 2, 4)),
        ("low", 12, True, (2, 4)),
        ("high", 12, False, (6, 8, 10)),
        ("low", 2, True, (1,)),
        ("low", 4, True, (2,)),
        ("low", 48, False, tuple(range(0, 20, 2))),
        ("high", 48, False, tuple(range(28, 48, 2))),
        ((0, 3, 12), 12, False, (0, 3)),
    ],
)
def test_layers_are_those_of_transformers(named, layers, tied, expected):
    info = ModelInfo(name="model", vocab_size=4, num_layers=layers, tied_head=tied)
    assert layers_of(named, info) == expected


def by_hand(toy_runtime, prompt, negative, scale, steps):
    """Greedy search over guided log-probabilities, every row looked up anew."""
    tokens = []
    for _ in range(steps):
        rows = [torch.tensor(toy_runtime._probabilities((*start, *tokens))).log() for start in (prompt, negative)]
        wanted, unwanted = (torch.log_softmax(row, -1) for row in rows)
        tokens.append(int((unwanted + scale * (wanted - unwanted)).argmax()))
    return tuple(tokens)


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_guidance_is_what_two_separate_models_would_give(scale):
    runtime = mixing_toy()
    engine = Engine(runtime)
    number = engine.submit(
        request(PROMPT, own={"negative_prompt": NEGATIVE}, guidance_scale=scale, max_new_tokens=9, ignore_eos=True)
    )
    (output,) = results(drain(engine))[number]
    assert output.token_ids == by_hand(mixing_toy(), PROMPT, NEGATIVE, scale, 9)
    assert not runtime.cached
    assert engine.timing.passes == 9  # both prompts share every pass
    plain = Engine(mixing_toy())
    number = plain.submit(request(PROMPT, max_new_tokens=9, ignore_eos=True))
    assert results(drain(plain))[number][0].token_ids != output.token_ids


def test_logprobs_stay_the_models_own_under_guidance():
    engine = Engine(toy())
    number = engine.submit(request([0], own={"negative_prompt": (2,)}, guidance_scale=2.0, max_new_tokens=1))
    (output,) = results(drain(engine))[number]
    assert output.token_ids == (1,)
    assert output.logprobs[0] == pytest.approx(math.log(0.6))
    assert output.scores[0] == pytest.approx(2 * math.log(0.6) - math.log(0.2))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.1},
    ],
)
def test_guidance_and_layers_go_with_strategies_that_fork(options):
    inner = lambda tokens, layer: [1.0 + (len(tokens) * 3 + layer + token) % 5 for token in range(17)]  # noqa: E731
    base = mixing_toy()
    make = lambda: ToyRuntime(base._probabilities, 17, eos_token_ids=(16,), inner=inner, num_layers=4)  # noqa: E731
    for own, more in (
        ({"negative_prompt": NEGATIVE}, {"guidance_scale": 1.7}),
        ({}, {"dola_layers": "high"}),
        ({"negative_prompt": NEGATIVE}, {"guidance_scale": 1.7, "dola_layers": (0, 1)}),
    ):
        runtime = make()
        engine = Engine(runtime)
        wanted = request(PROMPT, own=own, max_new_tokens=8, seed=3, **options, **more)
        numbers = [engine.submit(wanted), engine.submit(request(PROMPT, max_new_tokens=8, **options, seed=3))]
        found = results(drain(engine))
        alone = Engine(make())
        number = alone.submit(wanted)
        assert results(drain(alone))[number] == found[numbers[0]]
        assert found[numbers[0]] != found[numbers[1]]
        assert not runtime.cached


def test_layers_are_refused_where_the_runtime_cannot_look_inside():
    with pytest.raises(OptionError, match="inner layers of toy are not at hand"):
        Engine(toy()).submit(request([0], dola_layers="low"))


def test_a_negative_prompt_must_fit_the_model():
    with pytest.raises(OptionError, match="negative_prompt.*token ids in"):
        Engine(toy()).submit(request([0], own={"negative_prompt": (9,)}, guidance_scale=2.0))
    with pytest.raises(OptionError, match="negative_prompt.*shorter than the 8 tokens"):
        Engine(toy(max_length=8)).submit(request([0], own={"negative_prompt": (1,) * 8}, guidance_scale=2.0))
