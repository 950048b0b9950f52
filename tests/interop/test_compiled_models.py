"""Models of torch.compile run as the plain model, and no call compiles a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unspool
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq

IDS = torch.tensor([[11, 12, 13], [21, 22, 23]])
CALL: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 2, "pad_token_id": 0, "eos_token_id": None}


class Counting:
    """A backend of torch.compile that counts graphs."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        self.num_graphs += 1
        return graph.forward


def compiled(model: Any, form: str, backend: Counting) -> Any:
    """Return the model with a part compiled."""
    if form == "model":
        return torch.compile(model, backend=backend)
    if form == "forward":
        model.forward = torch.compile(model.forward, backend=backend)
    elif form == "in place":
        model.compile(backend=backend)
    elif form == "layer":
        model.model.layers[0] = torch.compile(model.model.layers[0], backend=backend)
    return model


@pytest.mark.parametrize("form", ["model", "forward", "in place", "layer"])
def test_a_compiled_decoder_runs_as_the_plain_model(form: str) -> None:
    model, backend = tiny_model("llama", seed=5), Counting()
    expected = model.generate(IDS, **CALL)
    given = compiled(model, form, backend)
    before = dict(model.__dict__)
    assert unspool.generate(given, IDS, **CALL).equal(expected)
    assert backend.num_graphs == 0 and model.__dict__ == before
    assert unspool.load(given).info.backend == unspool.load(tiny_model("llama")).info.backend


def test_a_compiled_encoder_decoder_and_a_compiled_draft_model() -> None:
    model, backend = tiny_seq2seq("t5"), Counting()
    expected = model.generate(IDS, **CALL)
    assert unspool.generate(torch.compile(model, backend=backend), IDS, **CALL).equal(expected)
    draft = torch.compile(tiny_model("llama", seed=6), backend=backend)
    plain = {**CALL, "num_beams": 1}
    found = unspool.generate(tiny_model("llama", seed=5), IDS, assistant_model=draft, **plain)
    assert found.equal(tiny_model("llama", seed=5).generate(IDS, **plain)) and backend.num_graphs == 0


def test_a_compiled_model_with_a_hook_runs_on_its_own_modules_without_a_graph() -> None:
    model, backend = tiny_model("llama", seed=5), Counting()
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * 0.5)
    expected = model.generate(IDS, **CALL)
    compiled(model, "forward", backend)
    assert unspool.generate(model, IDS, **CALL).equal(expected) and backend.num_graphs == 0
