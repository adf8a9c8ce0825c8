"""Every transfer of a trained encoder says whether pretraining helped, compared with three random encoders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transferring import QUICK, go, installed, pretrained, small

from dabsmix.data.domain import Labelled, Split, Task
from dabsmix.scoring import random_init
from dabsmix.scoring.results import Gain, Result, TransferRecord, read_transfer
from dabsmix.verbs import transfer as module

pytestmark = pytest.mark.answered


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "protocol", lambda name, batch_size, specs: replace(QUICK, name=name))


def test_a_trained_run_is_compared_with_stored_random_encoders(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))
    installed(small(), monkeypatch)
    run = pretrained(tmp_path / "runs", "small", algo="dmix", steps=2)
    record = go(run, labels=("1", "5/class"))
    assert record["test_reads"] == 1
    assert [(gain["probe"], gain["label_fraction"], gain["seeds"]) for gain in record["gains"]] == [
        ("linear", "1", 3),
        ("linear", "5/class", 3),
    ]
    for gain, result in zip(record["gains"], record["results"][::3], strict=True):
        assert gain["value"] == pytest.approx(result["value"] - gain["random"])
        assert gain["low"] <= gain["value"] <= gain["high"]
    assert record["answer"].startswith("Did pretraining help? ")
    assert str(read_transfer(run.path / "transfer" / "small.json")).endswith(record["answer"])

    # another run of the same shape, and a share requested later: stored scores are not computed again
    built = 0

    def count(*words: Any, **how: Any) -> Any:
        nonlocal built
        built += 1
        return scored(*words, **how)

    scored = random_init._scored
    monkeypatch.setattr(random_init, "_scored", count)
    other = go(pretrained(tmp_path / "runs", "small", algo="dmix", steps=1), labels=("1", "5/class"))
    assert built == 0
    assert [gain["random"] for gain in other["gains"]] == [gain["random"] for gain in record["gains"]]
    extended = go(run, labels=("1", "0.5"))
    assert built == 3
    assert [gain["label_fraction"] for gain in extended["gains"]] == ["1", "5/class", "0.5"]
    assert extended["gains"][:2] == record["gains"]

    # a record of an earlier version
    path = run.path / "transfer" / "small.json"
    stored = json.loads(path.read_text())
    del stored["gains"], stored["answer"]
    path.write_text(json.dumps(stored))
    assert go(run, labels=("1",))["gains"] == extended["gains"]
    assert built == 3


def test_a_random_encoder_has_no_gain(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(small(), monkeypatch)
    run = pretrained(tmp_path, "small")
    record = go(run, labels=("1",))
    assert (record["gains"], record["answer"]) == ([], "")
    of_other_weights = pretrained(tmp_path, "small", init=str(run.path))  # which somebody may have trained
    assert len(go(of_other_weights, labels=("1",))["gains"]) == 1


GAIN = Gain("linear", "1", "accuracy", 0.7, 0.6, 0.8, 3, 0.05, 0.01, 0.09)


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        ([GAIN], "Yes: with all labels this encoder is better than a random one by 5.0 points of accuracy (95 %"),
        (
            [replace(GAIN, low=-0.01)],
            "Not shown: with all labels no difference from a random one is shown, +5.0",
        ),
        (
            [replace(GAIN, value=-0.05, low=-0.09, high=-0.01)],
            "No: with all labels this encoder is worse than a random one by",
        ),
        (
            [replace(GAIN, metric="mse", value=-2.0, low=-3.0, high=-1.0)],
            "better than a random one by 2 mse (95 % interval +1 to +3)",
        ),
        ([replace(GAIN, low=None, high=None)], "Not shown: with all labels it differs from a random one by +5.0"),
    ],
)
def test_the_answer_is_a_plain_sentence(gains: list[Gain], sentence: str) -> None:
    result = Result("linear", "1", "accuracy", 0.9, 0.8, 1.0, 1200)
    answer = TransferRecord("t", "v2", (result,), gains=tuple(gains)).answer
    assert sentence in answer
    assert "Measured on 1,200 test examples." in answer
    assert "\n" not in answer
    claimed = not sentence.startswith("Not shown")
    assert answer.endswith("One encoder may owe this to its first weights: compare several seeds.") == claimed


def test_several_shares_of_the_labels_are_one_family() -> None:
    result = Result("linear", "1", "accuracy", 0.9, 0.8, 1.0, 1200)

    def answer(*p: float) -> str:
        gains = tuple(
            replace(GAIN, label_fraction=share, p=one) for share, one in zip(("1", "0.1", "0.01"), p, strict=False)
        )
        return TransferRecord("t", "v2", (result,), gains=gains).answer

    assert answer(0.03).startswith("Did pretraining help? Yes: with all labels this encoder is better")
    several = answer(0.03, 0.2, 0.4)  # each of equal encoders is called different in 5 %, one of three in up to 14 %
    assert several.startswith("Did pretraining help? Not shown: with all labels no difference")
    assert "interval +1.0 to +9.0; not significant by Holm over the shares of the labels)" in several
    mixed = answer(0.01, 0.2, 0.4)
    assert mixed.startswith("Did pretraining help? Yes: with all labels this encoder is better")
    assert "with 10 % of the labels no difference" in mixed


def test_groups_count_as_they_do_in_every_interval(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small()
    assert data.labelled is not None
    grouped = [Split(split.inputs, split.rows, split.label, split.rows % 3) for split in data.labelled.splits.values()]
    task = Task("classes", "accuracy", ("a", "b"))
    installed(replace(data, labelled=Labelled(task, *grouped), fingerprint="1" * 64), monkeypatch)
    record = go(pretrained(tmp_path, "small", algo="dmix", steps=1), labels=("1",))
    assert record["gains"][0]["low"] is None
    assert "too few groups" in record["answer"]
