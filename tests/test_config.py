"""Configurations: open fields are filled in from the protocol; equal requests share a hash."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from dabsmix.config import ADDED, NOT_KEPT, PRETRAIN_PROTOCOLS, PretrainConfig, Recipe, as_plain, config_hash, resolve
from dabsmix.errors import UserError
from dabsmix.files import cache_folder, data_root
from dabsmix.source import Source

CONFIG = PretrainConfig(Source("digits"), algo="emix")
DABS = Source("digits", protocol="dabs")


@pytest.mark.parametrize("protocol", PRETRAIN_PROTOCOLS)
def test_every_open_field_is_filled_in(protocol: Any) -> None:
    config, recipe = resolve(replace(CONFIG, source=Source("digits", protocol=protocol)), 37, 37 * 200)
    for field in fields(Recipe):
        assert getattr(config, field.name) == getattr(recipe, field.name)
        assert getattr(recipe, field.name) is not None
    assert recipe.batch_size == 37
    expected = dict(PRETRAIN_PROTOCOLS[protocol])
    if protocol == "imix":
        expected |= dict(steps=200 * expected.pop("epochs"), lr=expected["lr"] * 37 / 256)
    assert {name: asdict(recipe)[name] for name in expected} == expected
    assert (recipe.evaluate_every, recipe.checkpoint_every) == (10_000, 5_000)


def test_given_fields_are_not_changed() -> None:
    options = dict(steps=7, batch_size=5, lr=0.5, weight_decay=0.0, schedule="constant", clip=0.0, columns="shared")
    options |= dict(optimizer="sgd", attend_padding=True, evaluate_every=3, checkpoint_every=2)
    _, recipe = resolve(replace(CONFIG, **options), 37)  # type: ignore[arg-type]  # values of several types
    assert asdict(recipe) == options


def test_resolving_twice_changes_nothing() -> None:
    once, _ = resolve(CONFIG, 64)
    assert resolve(once, 999)[0] == once


def test_hyperparameters_follow_algorithm_and_protocol() -> None:
    v1, _ = resolve(CONFIG, 64)
    dabs, _ = resolve(replace(CONFIG, source=DABS), 64)
    assert v1.hyper["label_weight"] == "example"
    assert dabs.hyper["label_weight"] == "batch-mean"
    explicit, _ = resolve(replace(CONFIG, source=DABS, hyper={"label_weight": "example", "alpha": 2.0}), 64)
    assert (explicit.hyper["label_weight"], explicit.hyper["alpha"]) == ("example", 2.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("evaluate_every", 0),
        ("checkpoint_every", -1),
        ("lr", -1e-9),
        ("lr", float("nan")),
        ("weight_decay", -1.0),
        ("clip", -0.1),
        ("seed", -1),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} .*must be at least"):
        resolve(replace(CONFIG, **{name: value}), 64)  # type: ignore[arg-type]  # values of several types


def test_imix_masks_the_values_of_tables_by_default() -> None:
    def views(domain: str, algo: str, protocol: str, **hyper: Any) -> Any:
        config = PretrainConfig(Source(domain, protocol=protocol), algo=algo, steps=9, hyper=hyper)  # type: ignore[arg-type]
        return resolve(config, 64)[0].hyper.get("views")

    assert views("covtype", "imix_npair", "imix") == "mask"
    assert views("covtype", "imix_npair", "imix", views="noise") == "noise"
    assert views("covtype", "imix_npair", "v1") == "identical"
    assert views("digits", "imix_npair", "imix") == "identical"
    assert views("covtype", "emix", "imix") is None


def test_the_hash_distinguishes_requests_and_nothing_else() -> None:
    base = config_hash(CONFIG)
    for same in (
        replace(CONFIG, out=Path("elsewhere")),
        replace(CONFIG, source=Source("digits", data_root=Path("/data"))),
        replace(CONFIG, resume=True),
        replace(CONFIG, checkpoint_every=3),
    ):
        assert config_hash(same) == base
    others = [
        replace(CONFIG, seed=1),
        replace(CONFIG, algo="dmix"),
        replace(CONFIG, lr=1e-3),
        replace(CONFIG, precision="bf16"),
        replace(CONFIG, hyper={"alpha": 2.0}),
        replace(CONFIG, encoder="tiny"),
    ]
    assert len({base, *map(config_hash, others)}) == 1 + len(others)
    assert len(base) == 12


def test_a_new_field_enters_the_hash_only_if_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dabsmix.config.ADDED", {"online": None})
    assert "online" not in as_plain(CONFIG)
    config = replace(CONFIG, online="uci_har")
    assert as_plain(config)["online"] == "uci_har"
    assert config_hash(config) != config_hash(CONFIG)


def test_plain_values_hold_every_field_except_resume() -> None:
    plain = as_plain(replace(CONFIG, hyper={"alpha": 2.0}))
    names = {f.name for kind in (PretrainConfig, Source) for f in fields(kind)}
    assert plain.keys() == names - {"source", "hyper", *NOT_KEPT, *ADDED} | {"alpha"}
    assert all(value is None or isinstance(value, (str, int, float, bool)) for value in plain.values())


def test_data_root_is_the_flag_then_the_variable_then_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DABSMIX_DATA", "~/variable")
    assert data_root(Path("~/flag")) == Path("/home/me/flag")
    assert data_root(None) == Path("/home/me/variable")
    monkeypatch.delenv("DABSMIX_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_root(None) == Path("/cache/dabsmix/data")
    monkeypatch.delenv("DABSMIX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # as if it were unset
    assert data_root(None) == Path("/home/me/.cache/dabsmix/data")
    assert cache_folder() == Path("/home/me/.cache/dabsmix")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root(None) == Path("/home/me/.cache/dabsmix/data")
