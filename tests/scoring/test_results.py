"""Transfer files, written and read: of this version, of older and newer ones, and damaged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dabsmix.errors import UserError
from dabsmix.scoring.metrics import METRICS
from dabsmix.scoring.protocols import PROBED
from dabsmix.scoring.results import BY_CLASS, PROTOCOLS, Result, TransferRecord, prediction_key, read_transfer

FIRST = Result("linear", "1", "accuracy", 0.9, 0.88, 0.92, 360, 360, 1, {"rate": 0.1, "validation": 0.91})
FEW = replace(FIRST, label_fraction="5/class", value=0.6, low=None, high=None, draws=20)
RECORD = TransferRecord(
    task="digits",
    protocol="v1",
    results=(FIRST, FEW),
    run="digits-dmix-s0",
    kind="classes",
    yardsticks={"majority": (replace(FIRST, probe="majority", value=0.1),)},
    classes=("0", "1"),
    data_fingerprint="d" * 64,
    encoder_sha256="e" * 64,
    notes=("The splits are ours.",),
)


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(RECORD.as_plain() | changes), encoding="utf-8")
    return path


def test_a_record_is_read_back_unchanged(tmp_path: Path) -> None:
    path = written(tmp_path / "digits.json")
    assert read_transfer(path) == RECORD
    plain = json.loads(path.read_text())
    headline = {name: plain[name] for name in ("value", "low", "high", "n", "probe", "label_fraction", "selected")}
    assert headline == {name: plain["results"][0][name] for name in headline}


def test_unknown_entries_are_ignored_and_missing_ones_have_defaults(tmp_path: Path) -> None:
    results = [result | {"colour": "green"} for result in RECORD.as_plain()["results"]]
    assert read_transfer(written(tmp_path / "new.json", taste="sour", results=results)) == RECORD
    old = {name: RECORD.as_plain()[name] for name in ("task", "protocol")}
    few = {"probe": "linear", "label_fraction": "1", "metric": "accuracy", "value": 0.9, "low": 0.8, "high": 1, "n": 9}
    (tmp_path / "old.json").write_text(json.dumps(old | {"results": [few]}))
    assert read_transfer(tmp_path / "old.json").headline == Result("linear", "1", "accuracy", 0.9, 0.8, 1, 9)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Expecting"),
        ("[]", "expected a JSON object, found a list"),
        ('{"task": "digits", "protocol": "v1"}', "it lacks 'results'"),
        ('{"task": 3, "protocol": "v1", "results": []}', "task is 3, not str"),
        ('{"task": "digits", "protocol": "v1", "results": [7]}', "found a int"),
        ('{"task": "digits", "protocol": "v1", "results": [{"probe": "knn"}]}', "it lacks 'label_fraction'"),
        ("[" * 100_000, "cannot read"),
    ],
)
def test_a_file_that_is_not_a_record_is_one_line(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "digits.json").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        read_transfer(tmp_path / "digits.json")
    assert "\n" not in str(caught.value)


def test_a_record_prints_as_lines_and_converts_to_a_frame() -> None:
    lines = str(RECORD).splitlines()
    assert lines[0] == "digits-dmix-s0  digits  accuracy  protocol v1  n 360"
    assert [line.split()[:2] for line in lines[1:-1]] == [["encoder", "linear"]] * 2 + [["majority", "majority"]]
    assert lines[1].endswith("90.00  [88.0, 92.0]")
    assert lines[2].endswith(" 60.00")
    assert lines[3].endswith(" 10.00  [88.0, 92.0]")
    assert lines[4] == "  The splits are ours."  # what is said of the intervals stands below them
    balanced = replace(RECORD, yardsticks={"majority": (replace(FIRST, probe="majority", metric="balanced_accuracy"),)})
    assert str(balanced).splitlines()[3].endswith(" 90.00"), "the same on all data"
    read = replace(RECORD, results=(replace(FIRST, num_features=256),))
    assert str(read).splitlines()[1].endswith("90.00  [88.0, 92.0]  256 features")
    frame = RECORD.to_frame()
    assert list(frame["of"]) == ["encoder", "encoder", "majority"]
    assert list(frame["value"]) == [0.9, 0.6, 0.1]
    assert set(frame["run"]) == {"digits-dmix-s0"}


def test_prediction_keys_and_names_of_protocols_and_metrics() -> None:
    assert prediction_key("knn", "5/class") == "knn@5 per class"
    assert set(PROTOCOLS) == {*PROBED, "finetune"}
    assert set(BY_CLASS) <= set(METRICS)


def test_a_record_names_the_yardsticks_that_pretraining_did_not_beat() -> None:
    better, worse = replace(FIRST, value=FIRST.value + 0.01), replace(FIRST, value=FIRST.value - 0.01)
    other = replace(better, label_fraction="0.5")
    record = replace(RECORD, yardsticks={"patches": (better,), "raw": (worse, other), "supervised": (better,)})
    assert record.unbeaten == ("patches",)
    assert str(record).endswith("With all labels the linear probe does not beat patches: nothing is shown.")
    assert "nothing is shown" not in str(replace(record, yardsticks={"raw": (worse, other)}))


def test_the_number_of_groups_is_printed_and_few_groups_are_explained() -> None:
    first = replace(FIRST, n=100, units=12)
    assert "n 100 in 12 groups" in str(replace(RECORD, results=(first,)))
    assert "fewer than 5" not in str(replace(RECORD, results=(first,)))
    few = str(replace(RECORD, results=(replace(first, units=2, low=None, high=None),)))
    assert "holds 2 of the groups. With fewer than 5 there is no interval" in few
    assert "groups" not in str(replace(RECORD, results=(replace(first, units=100),)))
