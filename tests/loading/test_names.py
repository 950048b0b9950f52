"""Names of models: what a wrong one most likely means, and one round of requests for a name of the hub."""

from pathlib import Path

import pytest

import unspool
from unspool.errors import ModelError
from unspool.loading.names import check_on_hub, is_here, near_names, suggestion


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    (folder / "models--acme--tiny-llama").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every reading of a config fail as without a network. Returns the names that were asked for."""
    asked: list[str] = []

    def fail(name: str, **_: object) -> None:
        asked.append(name)
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", fail)
    return asked


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tael", ["tale"]),
        ("tale-drafft", ["tale-draft"]),
        ("smolm2", ["smollm2"]),
        ("acme/tiny-lama", ["acme/tiny-llama"]),
        ("tiny-llama", ["acme/tiny-llama"]),
        ("someone/tiny-llama", ["acme/tiny-llama"]),
        ("zzzz", []),
    ],
)
def test_near_names(cache: Path, name: str, near: list[str]) -> None:
    assert near_names(name) == near


def test_models_beside_a_path_are_near(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    (tmp_path / "my-notes").mkdir()
    (tmp_path / "small.gguf").touch()
    assert near_names(str(tmp_path / "my-modell")) == [str(tmp_path / "my-model")]
    assert near_names(str(tmp_path / "smal.gguf")) == [str(tmp_path / "small.gguf")]
    assert is_here(str(tmp_path / "small.gguf")) and not is_here(str(tmp_path / "smal.gguf"))


def test_without_near_names_the_list_is_named(cache: Path) -> None:
    assert suggestion("zzzz") == "`unspool models` lists the models on this machine"
    assert suggestion("tael").startswith("did you mean 'tale'? `unspool models`")


def test_is_here(cache: Path) -> None:
    assert all(map(is_here, ("tale", "tale-draft", "smollm2", "acme/tiny-llama")))
    assert not is_here("acme/other")


def test_an_unknown_name_costs_one_round_of_retries(cache: Path, no_network: list[str]) -> None:
    with pytest.raises(
        ModelError, match="cannot load 'nobody/tale': We couldn't connect to the hub; did you mean 'tale'"
    ):
        unspool.load("nobody/tale")
    assert no_network == ["nobody/tale"]


def test_folders_and_given_configs_need_no_request(tmp_path: Path, no_network: list[str]) -> None:
    check_on_hub(str(tmp_path), {})
    check_on_hub("nobody/nothing", {"config": object()})
    assert no_network == []
