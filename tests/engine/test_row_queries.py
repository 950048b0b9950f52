"""What a step finds comes over in one transfer, and is the same whether a device or the CPU has found it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from tests.toys import Scripted, drain, mixing_toy, request, results
from unspool.engine import Engine
from unspool.engine import sampler as select
from unspool.engine import transfer as device_to_host
from unspool.engine.transfer import DeviceToHost
from unspool.processors import rows
from unspool.types import ROOT, FullDistribution, Output, Score, Top, Turn

LENGTH = 6
LOOKS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero", "cpu", "numpy")
"""The ways to look at a tensor's numbers, each of which waits for a device."""


def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the paths that a device takes."""
    for module in (rows, select, device_to_host):
        monkeypatch.setattr(module, "on_host", lambda values: False)


def watched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return a count of looks at tensors, which goes on counting."""
    looks: Counter[str] = Counter()

    def counting(name: str) -> Any:
        plain = getattr(torch.Tensor, name)

        def look(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            looks[name] += 1
            return plain(self, *args, **kwargs)

        return look

    for name in LOOKS:
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    return looks


def decode(wanted: list[dict[str, Any]]) -> list[tuple[Output, ...] | Exception]:
    engine = Engine(mixing_toy(200))
    options = {"max_new_tokens": LENGTH, "ignore_eos": True}
    numbers = [engine.submit(request([3, 1 + index], seed=5, **options, **own)) for index, own in enumerate(wanted)]
    found = results(drain(engine))
    return [found[number] for number in numbers]


DRAWN: dict[str, Any] = {"do_sample": True}
ONE_TRANSFER: dict[str, list[dict[str, Any]]] = {
    "greedy": [{}],
    "greedy, several": [{}] * 5,
    "greedy, with alternatives": [{"logprobs": 3}],
    "penalized": [{"repetition_penalty": 1.3}, {}],
    "sampled": [DRAWN, DRAWN],
    "sampled, several outputs": [DRAWN | {"num_return_sequences": 3, "temperature": 0.7}],
    "beam": [{"num_beams": 4}],
    "beam sampling": [DRAWN | {"num_beams": 3}],
    "all together": [{}, DRAWN, {"num_beams": 2}, {"repetition_penalty": 1.3}, DRAWN | {"num_beams": 2}],
}


@pytest.mark.parametrize("name", ONE_TRANSFER)
def test_one_transfer_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = decode(ONE_TRANSFER[name])
    as_on_a_device(monkeypatch)
    # The toy's rows are whole numbers, whose ties take another look: the rows are tilted, so that there are none.
    monkeypatch.setattr("unspool.runtimes.toy.ToyRuntime._logs", tilted)
    looks = watched(monkeypatch)
    decode(ONE_TRANSFER[name])
    assert looks == {"tolist": LENGTH}
    assert all(isinstance(each, tuple) for each in alike)


def tilted(self: Any, probabilities: Any) -> torch.Tensor:
    plain = torch.tensor(probabilities, dtype=torch.float32).reshape(len(probabilities), self.info.vocab_size).log()
    return plain - torch.arange(self.info.vocab_size) * 1e-3


@pytest.mark.parametrize(
    "own",
    [
        *({}, DRAWN, {"num_beams": 4}, {"logprobs": 4}, DRAWN | {"num_beams": 3}, {"penalty_alpha": 0.5, "top_k": 3}),
        *(
            DRAWN | {"top_k": 5, "top_p": 0.9},
            DRAWN | {"typical_p": 0.5},
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        ),
    ],
)
def test_a_device_finds_what_the_cpu_finds(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [own, {}, own | {"repetition_penalty": 1.2}]
    expected = decode(wanted)
    as_on_a_device(monkeypatch)
    assert decode(wanted) == expected


@pytest.mark.parametrize("space", ["logits", "log_probs"])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 5}])
def test_a_row_says_what_its_scores_add_up_to(space: str, options: dict[str, Any]) -> None:
    asks = (Top(ROOT, 3), Score(ROOT, (5, 9)), FullDistribution(ROOT))
    strategy = Scripted([Turn(asks=asks)])
    strategy.space = space
    engine = Engine(mixing_toy(200))
    engine.submit(request([3, 1], own={"strategy": strategy}, **options))
    drain(engine)
    (rows_heard,) = strategy.heard
    whole = rows_heard[2].distribution
    for row in rows_heard:
        assert row.log_norm == pytest.approx(float(whole.scores.logsumexp(-1)), abs=1e-5)
        for each in row.candidates:
            assert each.score == pytest.approx(float(whole.scores[each.token]), abs=1e-5)
            assert each.logprob == pytest.approx(float(whole.logprobs[each.token]), abs=1e-5)


def test_a_parcel_brings_everything_over_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {
        "ids": torch.tensor([[2**24 + 1, 2**40 + 1], [3, 0]]),
        "floats": torch.tensor([[0.1], [float("-inf")], [3e38]]),
        "nothing": torch.zeros(2, 0),
    }
    expected = {name: numbers.tolist() for name, numbers in sent.items()}
    for _ in range(2):
        both = DeviceToHost()
        items = {name: both.add(numbers) for name, numbers in sent.items()}
        both.send()
        assert {name: item.rows for name, item in items.items()} == expected
        as_on_a_device(monkeypatch)
