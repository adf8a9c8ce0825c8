"""Every algorithm's hyperparameters and their defaults, written out a second time from its source."""

from typing import Any

import pytest

from dabsmix.registry import algorithm_flags, algorithms

VIEWS = {"views": "identical", "inputmix": 0}  # identical for all: the comparison that knows nothing of the domain
UNMIXED = {"mixing": "none", "alpha": 1.0, "share": "operator"}
MIXING = {**UNMIXED, "mixing": "mixup"}  # λ as often as i-Mix's code draws it
NPAIR = {"temperature": 0.2, "head_norm": "both", **VIEWS}
MOCO = {"temperature": 0.2, "queue": 4096, "momentum": 0.999, "cosine_momentum": False, "head_norm": "first", **VIEWS}
BYOL = {
    "momentum": 0.999,
    "cosine_momentum": False,
    "symmetric": False,
    "head_norm": "first",
    "predictor_norm": "first",
    **VIEWS,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    # DABS
    "emix": {"alpha": 1.0, "temperature": 0.2, "label_weight": "example"},
    "shed": {"rate": 0.15},
    "contpred": {
        "rate": 0.15,
        "temperature": 0.07,
        "score": "all",
        "normalize": False,
        "detach_targets": True,  # by measurement; gradient flows in DABS
        "negatives": "sequence",
        "direction": "prediction",
    },
    "mae": {"rate": 0.15},
    # derived from e-mix
    "dmix": {"alpha": 1.0, "temperature": 0.2, "detach_partner": True},
    "contdmix": {
        "alpha": 1.0,
        "temperature": 0.2,
        "detach_partner": True,
        "beta": 1.0,
        "rate": 0.15,
        "contpred_temperature": 0.07,
        "score": "all",
        "normalize": True,  # by measurement
        "detach_targets": False,
    },
    # i-Mix and its baselines
    "npair": {**NPAIR, **UNMIXED},
    "simclr": {**NPAIR, **UNMIXED},
    "supcon": {**NPAIR, **UNMIXED},
    "moco": {**MOCO, **UNMIXED, "in_batch_negatives": False},
    "byol": {**BYOL, **UNMIXED},
    "imix_npair": {**NPAIR, **MIXING},
    "supnpair": {**NPAIR, **UNMIXED},
    "imix_supnpair": {**NPAIR, **MIXING},
    "imix_simclr": {**NPAIR, **MIXING},
    "imix_supcon": {**NPAIR, **MIXING},
    "imix_moco": {**MOCO, **MIXING, "in_batch_negatives": True},
    "imix_byol": {**BYOL, **MIXING},
}


def test_the_table_has_every_algorithm() -> None:
    assert sorted(DEFAULTS) == algorithms()


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_defaults_are_those_of_the_source(name: str) -> None:
    assert {flag.name: flag.default for flag in algorithm_flags(name)} == DEFAULTS[name]
