"""Hashes of configurations, computed when the hash was introduced (commit 6675b1b). They never change.

Runs are identified by their hash when they are resumed or compared. If a line here fails, something new enters the hash
although it has its default: see ``ADDED`` in dabsmix/config.py and ``added`` in dabsmix/pretext/algorithm.py.
"""

from pathlib import Path
from typing import Any

import pytest

from dabsmix.config import PretrainConfig, config_hash, resolve
from dabsmix.source import Source

OPTIONS = "rate: 50\nwindow: 2.56\ngroup: subject\n"

HASHES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("c9f6d6326b04", dict(domain="digits"), {}),
    ("028255a3cadb", dict(domain="digits"), dict(algo="none", encoder="tiny", steps=100, seed=3)),
    ("c2bf2091da95", dict(domain="uci_har"), dict(algo="emix", hyper={"alpha": 2.0})),
    ("7c4bb4d0aeb7", dict(domain="uci_har", protocol="dabs"), dict(algo="emix")),
    ("633e7d8ccb46", dict(domain="adult"), dict(algo="dmix", columns="shared", attend_padding=True)),
    (
        "5eae294d0cda",
        dict(domain="uci_har"),
        dict(algo="contdmix", hyper={"beta": 0.5, "score": "masked"}, precision="bf16"),
    ),
    ("2e8ea7e7a24a", dict(domain="digits", protocol="dabs"), dict(algo="shed", batch_size=64)),
    ("71ff59ff3790", dict(domain="digits"), dict(algo="contpred", lr=1e-3)),
    ("e043682f8b51", dict(domain="uci_har", protocol="dabs"), dict(algo="contpred", steps=500)),
    ("1cb21698bf38", dict(domain="digits"), dict(algo="mae", evaluate_every=10, compile=True)),
    ("d8c649230406", dict(domain="digits"), dict(algo="npair", hyper={"temperature": 0.5})),
    ("357354ff8e61", dict(domain="uci_har"), dict(algo="simclr", hyper={"views": "noise"})),
    ("61f09b84ac6e", dict(domain="digits"), dict(algo="moco", hyper={"queue": 256, "in_batch_negatives": True})),
    ("4bc05f79f1df", dict(domain="digits"), dict(algo="byol", schedule="constant", clip=0.0, weight_decay=0.1)),
    ("ba65b1f2db2d", dict(domain="uci_har"), dict(algo="supcon", seed=7)),
    ("53f7bc449d2e", dict(domain="digits"), dict(algo="imix_npair", hyper={"mixing": "cutmix", "share": "example"})),
    ("dbdb8555c9df", dict(domain="uci_har"), dict(algo="imix_simclr", hyper={"inputmix": 2})),
    ("63daceea5409", dict(domain="digits"), dict(algo="imix_moco")),
    ("b0bb883700c4", dict(domain="digits"), dict(algo="imix_byol", hyper={"predictor_norm": "both"}, encoder="tiny")),
    ("eeb6fc1cbbb4", dict(domain="uci_har"), dict(algo="imix_supcon", hyper={"mixing": "patch"})),
    (
        "9286e52a8976",
        dict(data=Path("/nowhere/walk.csv"), modality="sensor", label="activity", on_bad="skip", options=OPTIONS),
        dict(algo="dmix"),
    ),
    (
        "b35d4710ac2b",
        dict(data=Path("/nowhere/table.csv"), modality="tabular"),
        dict(algo="imix_moco", online="adult"),
    ),
]


@pytest.mark.parametrize(("digest", "source", "settings"), HASHES)
def test_hashes_stay_equal(digest: str, source: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    if "options" in source:
        source = source | {"options": tmp_path / "options.yaml"}
        (tmp_path / "options.yaml").write_text(OPTIONS)
    config, _ = resolve(PretrainConfig(Source(**source), **settings), 128)
    assert config_hash(config) == digest


def resolved(algo: str, **hyper: Any) -> PretrainConfig:
    return resolve(PretrainConfig(Source("digits"), algo=algo, hyper=hyper), 128)[0]


def test_an_alias_is_hashed_and_recorded_as_the_name_of_its_file() -> None:
    assert resolved("capri") == resolved("contpred")
    assert config_hash(resolved("capri", rate=0.3)) == config_hash(resolved("contpred", rate=0.3))


def test_new_hyperparameters_enter_the_hash_only_if_they_differ_from_their_default() -> None:
    assert resolved("moco", mixing="none", alpha=1.0).hyper.keys() == {
        "temperature",
        "momentum",
        "queue",
        "in_batch_negatives",
        "views",
        "inputmix",
        "head_norm",
    }
    assert "in_batch_negatives" not in resolved("imix_moco", in_batch_negatives=True).hyper
    assert resolved("imix_moco").hyper["mixing"] == "mixup"  # as old as imix_moco
    mixed = resolved("npair", mixing="cutmix")
    assert mixed.hyper["mixing"] == "cutmix"
    assert "alpha" not in mixed.hyper
    assert config_hash(mixed) != config_hash(resolved("npair"))
