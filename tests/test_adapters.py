"""Objects without a base class of ours work, and base classes pass every ability on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.toys import SmallBeam, mixing_toy
from unspool import LanguageModel
from unspool.adapters import as_criterion, as_runtime, as_strategy, is_runtime
from unspool.errors import OptionError
from unspool.protocols import Criterion, Processor, Runtime, Strategy, WrappedStrategy
from unspool.strategies import STRATEGIES, WithPromptScores

ABILITIES: dict[str, Any] = {
    "name": "odd",
    "space": "log_probs",
    "hidden_states": True,
    "inner_layers": True,
    "shows_tentative": False,
    "allows_empty_rows": True,
    "facts": STRATEGIES["beam"].facts,
}


def test_the_abilities_of_this_test_are_all_that_there_are_and_differ_from_the_defaults() -> None:
    assert ABILITIES.keys() == Strategy.__annotations__.keys()
    assert all(getattr(Strategy, name, None) != value for name, value in ABILITIES.items())


def subclass_of(base: Any, methods: set[str]) -> Any:
    """Return a subclass with these methods."""
    return type("Subclass", (base,), {name: lambda self: None for name in methods})


@pytest.mark.parametrize(
    ("base", "required"),
    [
        (Strategy, {"max_branches", "run"}),
        (Processor, {"start", "apply"}),
        (Criterion, {"start", "advance", "ends"}),
        (Runtime, {"forward", "fork", "truncate", "release"}),
    ],
)
def test_a_subclass_without_a_required_method_cannot_be_made(base: Any, required: set[str]) -> None:
    for missing in required:
        with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
            subclass_of(base, required - {missing})()


@pytest.mark.parametrize("wrap", [WrappedStrategy, WithPromptScores, as_strategy])
@pytest.mark.parametrize("ability", ABILITIES)
def test_a_wrapper_has_every_ability_of_the_strategy_inside(wrap: Any, ability: str) -> None:
    inner = type("Odd", (subclass_of(Strategy, {"max_branches", "run"}),), ABILITIES)()
    assert getattr(wrap(inner), ability) == ABILITIES[ability]


def test_a_strategy_without_the_base_class_gets_the_defaults_and_keeps_its_names_of_version_0_1() -> None:
    plain = as_strategy(SmallBeam(2))
    assert (plain.shows_tentative, plain.allows_empty_rows, plain.hidden_states) == (True, False, False)
    old = SmallBeam(2)
    old.leads, old.bears_dead_ends = False, True  # type: ignore[attr-defined]
    adapted = as_strategy(old)
    assert (adapted.shows_tentative, adapted.allows_empty_rows) == (False, True)
    assert adapted.max_branches(None) == 2  # type: ignore[arg-type]


def test_a_check_is_called_if_the_object_has_one() -> None:
    class Picky(SmallBeam):
        def check(self, context: Any) -> None:
            raise ValueError("not this prompt")

    with pytest.raises(ValueError, match="not this prompt"):
        LanguageModel(mixing_toy()).generate([1, 2], strategy=Picky(2), max_new_tokens=2)
    assert LanguageModel(mixing_toy()).generate([1, 2], strategy=SmallBeam(2), max_new_tokens=2).completions


class Duck:
    """A runtime without the base class; `ability` names an optional method that it has."""

    def __init__(self, ability: str = "") -> None:
        self.inner = mixing_toy()
        self.asked: list[int] = []
        if ability:
            setattr(self, ability, self._match)

    def __getattr__(self, name: str) -> Any:
        if name in ("info", "forward", "fork", "truncate", "release"):
            return getattr(self.inner, name)
        raise AttributeError(name)

    def _match(self, seq: int, tokens: Any, *, least: int, invariant: bool) -> int:
        self.asked.append(len(tokens))
        return 0


@pytest.mark.parametrize("ability", ["", "match_prefix", "recall"])
def test_a_runtime_without_the_base_class_runs_and_its_prefix_cache_is_asked(ability: str) -> None:
    duck, prompt = Duck(ability), [1, 2, 3] * 8
    assert is_runtime(duck) and not is_runtime(object())
    found = LanguageModel(duck).generate(prompt, max_new_tokens=4)
    assert found.completions == LanguageModel(mixing_toy()).generate(prompt, max_new_tokens=4).completions
    assert bool(duck.asked) is bool(ability)
    assert as_runtime(duck).has_prefix_caching is bool(ability)


def test_a_prefix_cache_that_knows_no_salts_refuses_them() -> None:
    prompt = [1, 2, 3] * 8
    with pytest.raises(OptionError, match="cannot separate the prefix cache"):
        LanguageModel(Duck("match_prefix")).generate(prompt, max_new_tokens=4, cache_salt="ann")
    assert LanguageModel(Duck()).generate(prompt, max_new_tokens=4, cache_salt="ann").usage.cached_tokens == 0


def test_objects_with_a_base_class_are_handed_on_as_they_are() -> None:
    runtime, strategy = mixing_toy(), STRATEGIES["greedy"]
    criterion = subclass_of(Criterion, {"start", "advance", "ends"})()
    assert as_runtime(runtime) is runtime and as_strategy(strategy) is strategy
    assert as_criterion(criterion) is criterion
    assert isinstance(runtime, Runtime)


@pytest.mark.parametrize("name", ["prepare", "foresee"])
def test_a_criterion_without_the_base_class_is_prepared_under_either_name(name: str) -> None:
    class Third:
        def __init__(self) -> None:
            self.pairs = 0
            self.name = "third"
            setattr(self, name, self._prepare)

        def _prepare(self, pairs: Any) -> None:
            self.pairs += len(pairs)

        def start(self, context: Any) -> int:
            return 0

        def advance(self, state: int, token: int) -> int:
            return state + 1

        def ends(self, state: int, token: int) -> bool:
            return state == 2

    criterion = Third()
    found = LanguageModel(mixing_toy()).generate([1, 2], criteria=[criterion], max_new_tokens=9, ignore_eos=True)
    assert found.completions[0].finish_reason == "third" and len(found.completions[0].token_ids) == 3
    assert criterion.pairs == 3
