"""Names used by DABS, sizes that DABS lacks, and examples that changed under a name since the first release."""

from dataclasses import replace
from pathlib import Path

import pytest

from dabsmix.config import PretrainConfig, config_hash, resolve
from dabsmix.errors import UserError
from dabsmix.registry import domain, domains
from dabsmix.source import Source, load


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("google_speech", "speech_commands_v2_224"),
        ("eurosat_transfer", "eurosat_all"),
        ("cifar10_small", "cifar10"),
        ("traffic_sign_small", "traffic_sign"),
    ],
)
def test_an_alias_from_dabs_is_the_same_domain_and_the_same_run(alias: str, name: str) -> None:
    assert domain(alias) is domains()[name]
    assert Source(alias).name == name
    by_alias, by_name = (resolve(PretrainConfig(Source(spelling)), 64)[0] for spelling in (alias, name))
    assert config_hash(by_alias) == config_hash(by_name)


def test_aliases_are_unique_and_not_names() -> None:
    aliases = [alias for card in domains().values() for alias in card.aliases]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & set(domains())


@pytest.mark.parametrize(
    "name", ["imagenet", "mscoco", "vqa", "chexpert", "xray8", "audio_mnist", "speech_commands_v2"]
)
def test_a_size_that_dabs_does_not_have_is_refused_with_the_name_that_it_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"another size: name {name}_224"):
        load(Source(name, protocol="dabs", data_root=tmp_path))
    assert not domain(f"{name}_224").dabs


def test_other_examples_under_the_same_name_are_another_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    card = domain("pamap2")
    assert card.revisions["dabs"] == 1
    before = replace(card, revisions={})
    for protocol, same in (("v1", True), ("dabs", False)):
        config, _ = resolve(PretrainConfig(Source("pamap2", protocol=protocol)), 256)  # type: ignore[arg-type]
        now = config_hash(config)
        with monkeypatch.context() as patch:
            patch.setattr("dabsmix.source.domain", lambda name: before)
            assert (config_hash(config) == now) == same


def test_revised_examples_are_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    card = domain("digits")
    before = load(Source("digits")).fingerprint
    monkeypatch.setattr("dabsmix.source.domain", lambda name: replace(card, revisions={"v1": 1}))
    assert load(Source("digits")).fingerprint != before
    assert load(Source("digits", protocol="dabs")).fingerprint == before


def test_eurosat_trains_in_batches_of_64_as_in_dabs() -> None:
    assert domain("eurosat_all").batch_size == 64
