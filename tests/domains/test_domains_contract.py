"""Every domain whose raw files are here keeps the contract of `check_domain`; the others are skipped by name."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.errors import UserError
from dabsmix.registry import domain, domains
from dabsmix.spec import Grid
from dabsmix.testing import check_domain

# at 224 x 224 they are the smaller sets in another size, and take minutes
LARGE = [pytest.param(name, marks=pytest.mark.slow if name.endswith("_224") else ()) for name in domains()]


@pytest.mark.parametrize("protocol", ["v1", "dabs"])
@pytest.mark.parametrize("name", LARGE)
def test_domain_keeps_the_contract(name: str, protocol: str) -> None:
    card = domain(name)
    root = Path(os.environ.get("DABSMIX_DATA", "no such folder"))
    folder = card.present(root) if card.folder else root
    if folder is None:
        pytest.skip(f"{card.folder} is not under $DABSMIX_DATA")
    try:
        check_domain(card, folder, protocol=protocol)
    except UserError as error:
        pytest.skip(f"not all files are here: {error}")


@pytest.mark.parametrize("name", list(domains()))
def test_what_a_domain_transfers_to_exists(name: str) -> None:
    assert set(domain(name).transfers) <= set(domains())


# --- the contract can be broken


VALUES = np.random.default_rng(0).normal(size=(30, 2, 8)).astype(np.float32)


def sound(**changes: object) -> Data:
    """Generated data: 30 series in three parts of ten, from two subjects each; with fields of the data changed, or
    of what is labelled."""

    def part(start: int) -> Split:
        rows = np.arange(start, start + 10)
        return Split((VALUES,), rows, rows % 3, start + rows % 2)

    task = Task("classes", "accuracy", ("a", "b", "c"))
    labelled = Labelled(task, part(0), part(10), part(20))
    inner = {name: changes.pop(name) for name in ("task", *labelled.splits) if name in changes}
    labelled = replace(labelled, **inner)  # type: ignore[arg-type]  # by name
    data = Data((Grid(2, (8,), (2,)),), part(0), labelled, fingerprint="0")
    return replace(data, **changes)  # type: ignore[arg-type]  # by name


def card(load: Callable[[], Data]) -> Domain:
    return Domain("generated", "sensor", "Generated", "MIT", "", load=lambda folder, protocol: load())


def test_contract_accepts_what_keeps_it() -> None:
    check_domain(card(sound), Path())


def split(name: str, **changes: object) -> dict[str, object]:
    data = sound()
    return {name: replace({"pretrain": data.pretrain, **data.require_labelled().splits}[name], **changes)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"specs": (Grid(2, (12,), (2,)),)}, r"torch.float32 \(10, 2, 8\), .* states"),
        ({"task": Task("classes", "accuracy", ("a", "b"))}, "a label beyond the 2 classes"),
        ({"normalise": lambda inputs: tuple(x / 0 for x in inputs)}, "not finite"),
        ({"normalise": lambda inputs: tuple(x + torch.rand(()) for x in inputs)}, "reading twice"),
        ({"augment": lambda inputs, generator: tuple(x[..., :4] for x in inputs)}, r"torch.float32 \(10, 2, 4\)"),
        (split("test", label=(np.arange(10) % 3).astype(np.int32)), "int64 is stated"),
        (split("test", rows=np.arange(10), group=None), "train and test share 10 rows"),
        (split("test", group=np.arange(10)), "train and test share 2 groups"),
        (split("pretrain", rows=np.arange(15, 25), group=None), "pretrain and test share 5 rows"),
    ],
)
def test_contract_reports_what_breaks_it(changes: dict[str, object], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_domain(card(lambda: sound(**changes)), Path())


def test_under_dabs_validation_may_be_test_and_groups_be_divided() -> None:
    watched = sound(**split("validation", rows=np.arange(20, 30), group=np.arange(10) % 2))
    check_domain(card(lambda: watched), Path(), protocol="dabs")
    with pytest.raises(AssertionError, match="train and validation share 2 groups"):
        check_domain(card(lambda: watched), Path())
    with pytest.raises(AssertionError, match="train and test share 10 rows"):
        check_domain(card(lambda: sound(**split("test", rows=np.arange(10)))), Path(), protocol="dabs")


def test_contract_requires_the_same_rows_on_a_second_load() -> None:
    rng = np.random.default_rng()
    reordered = card(lambda: sound(**split("test", rows=20 + rng.permutation(10))))
    with pytest.raises(AssertionError, match="a second load gives other rows"):
        check_domain(reordered, Path())


def test_data_in_the_form_of_the_first_release_are_refused_with_the_new_one() -> None:
    data = sound()
    specs, pretrain, labelled = data.specs, data.pretrain, data.require_labelled()
    by_name: dict[str, object] = {**labelled.splits, "task": labelled.task}
    by_place = (*labelled.splits.values(), labelled.task)
    for load in (
        lambda: Data(specs, pretrain, fingerprint="0", **by_name),  # type: ignore[arg-type]
        lambda: Data(specs, pretrain, *by_place, "0"),  # type: ignore[arg-type, call-arg]
    ):
        with pytest.raises(TypeError, match=r"Data takes labelled=Labelled\(task, train, validation, test\)"):
            check_domain(card(load), Path())


def test_labelled_splits_have_labels() -> None:
    with pytest.raises(ValueError, match="the test split of a labelled data set has no labels"):
        sound(**split("test", label=None))
