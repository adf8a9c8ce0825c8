"""The audit finds what was planted, names its rows, and stays silent on a clean set."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dabsmix.data.audit import Finding, audit, render
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.spec import Grid, Spec, Table, Tokens


def make(
    x: NDArray[Any] | None = None,
    label: NDArray[Any] | None = None,
    group: NDArray[np.int64] | None = None,
    spec: Spec | None = None,
    task: Task | None = None,
) -> Data:
    """A set of 600 rows, 400 of them train, 100 validation, 100 test, whose rows lie in the store in random order."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype(np.float32) if x is None else x
    label = rng.integers(0, 3, 600) if label is None else label
    rows = np.random.default_rng(1).permutation(600)

    def split(part: NDArray[np.int64]) -> Split:
        return Split((x,), part, label[part], None if group is None else group[part])

    train, validation, test = (split(part) for part in np.split(rows, [400, 500]))
    return Data(
        specs=(spec or Table(4),),
        pretrain=train,
        labelled=Labelled(task or Task("classes", "accuracy", ("a", "b", "c")), train, validation, test),
        fingerprint="",
    )


def only(findings: list[Finding], check: str, split: str = "", severity: str = "") -> Finding:
    matching = [
        finding
        for finding in findings
        if finding.check == check and split in ("", finding.split) and severity in ("", finding.severity)
    ]
    assert len(matching) == 1, render(findings)
    return matching[0]


def test_clean_set_has_nothing_but_information() -> None:
    findings = audit(make())
    assert {finding.severity for finding in findings} == {"info"}
    assert "400 train, 100 validation, 100 test" in only(findings, "splits").message


def test_planted_copy_of_a_test_row_in_train_is_found_with_its_row() -> None:
    data = make()
    labelled = data.require_labelled()
    x = np.asarray(labelled.test.inputs[0])
    x[labelled.train.rows[17]] = x[labelled.test.rows[5]]
    leak = only(audit(data), "leak")
    assert (leak.severity, leak.split, leak.count) == ("error", "test", 1)
    assert leak.rows == (int(labelled.test.rows[5]),)


def test_pretraining_on_test_rows_is_a_leak() -> None:
    data = make()
    labelled = data.require_labelled()
    both = np.concatenate([labelled.train.rows, labelled.test.rows[:7]])
    leak = only(audit(replace(data, pretrain=Split(labelled.train.inputs, both))), "leak")
    assert leak.count == 7
    assert "pretrain" in leak.message
    all_of_them = np.concatenate([labelled.train.rows, labelled.test.rows])
    leak = only(audit(replace(data, pretrain=Split(labelled.train.inputs, all_of_them))), "leak")
    assert leak.message == "100 of its examples (100 %) are in pretrain too"


def test_duplicates_within_a_split_and_labels_that_contradict() -> None:
    data = make()
    labelled = data.require_labelled()
    assert labelled.train.label is not None
    x, rows, label = np.asarray(labelled.train.inputs[0]), labelled.train.rows, labelled.train.label
    label[[1, 2, 3]] = [0, 0, 1]
    x[rows[2]] = x[rows[1]]  # same label
    x[rows[3]] = x[rows[1]]  # another label
    duplicates = only(audit(data), "duplicates", "train")
    assert sorted(duplicates.rows) == sorted(rows[[1, 2, 3]].tolist())
    assert "2 could be removed" in duplicates.message
    assert "1 example occurs with different labels" in duplicates.message


def test_rows_that_differ_in_one_bit_are_not_duplicates() -> None:
    data = make()
    labelled = data.require_labelled()
    x, rows = np.asarray(labelled.train.inputs[0]), labelled.train.rows
    x[rows[2]] = x[rows[1]]
    x[rows[2], 3] = np.nextafter(x[rows[1], 3], np.float32(9))
    assert not [finding for finding in audit(data) if finding.check == "duplicates"]


def test_a_held_out_text_inside_a_training_text_is_found() -> None:
    ids = np.random.default_rng(0).integers(4, 2000, size=(600, 24))
    ids[:, [0, -1]] = 2, 3  # every text has these two special tokens
    data = make(x=ids, spec=Tokens(24, 2000, pad=0))
    labelled = data.require_labelled()
    assert not [finding for finding in audit(data) if finding.check == "overlap"]
    phrase = ids[labelled.train.rows[3], 5:15].copy()
    ids[labelled.validation.rows[7], 1:] = [*phrase, 3, *[0] * 12]  # completely contained
    ids[labelled.validation.rows[8], 9:19] = phrase  # partly contained
    overlap = only(audit(data), "overlap")
    assert (overlap.split, overlap.severity, overlap.count) == ("validation", "info", 2)
    assert sorted(overlap.rows) == sorted(labelled.validation.rows[[7, 8]].tolist())
    ids[labelled.test.rows[:11], 9:19] = phrase
    assert only(audit(data), "overlap", "test").severity == "warning"  # more than a tenth of the split


def test_shared_groups_are_named() -> None:
    group = np.arange(600) // 10
    shared = [finding for finding in audit(make(group=group)) if finding.check == "groups"]
    # rows are split at random, so groups of ten are divided
    assert {finding.severity for finding in shared} == {"error"}
    apart = make(group=np.argsort(np.random.default_rng(1).permutation(600)) // 100)  # each group lies within a split
    assert not [finding for finding in audit(apart) if finding.check == "groups"]


def test_missing_class_and_constant_label() -> None:
    data = make()
    labelled = data.require_labelled()
    assert labelled.train.label is not None
    labelled.train.label[labelled.train.label == 1] = 0
    missing = only(audit(data), "classes", "train", "error")
    assert "1 of 3 classes do not occur: b" in missing.message
    labelled.train.label[:] = 2
    messages = [finding.message for finding in audit(data) if finding.split == "train" and finding.severity == "error"]
    assert "the label is constant: c" in messages


def test_labels_outside_the_classes_are_named() -> None:
    data = make()
    labelled = data.require_labelled()
    assert labelled.test.label is not None
    labelled.test.label[4] = 3
    unknown = only(audit(data), "classes", "test", "error")
    assert unknown.rows == (int(labelled.test.rows[4]),)


def test_regression_labels() -> None:
    label = np.random.default_rng(2).normal(size=600).astype(np.float32)
    data = make(label=label, task=Task("regression", "spearman"))
    assert {finding.severity for finding in audit(data)} == {"info"}
    labelled = data.require_labelled()
    assert labelled.test.label is not None
    labelled.test.label[9] = np.nan
    assert only(audit(data), "classes", "test", "error").rows == (int(labelled.test.rows[9]),)


@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_labels_sorted_in_the_file_are_distinguished_from_shuffled_ones(kind: Any) -> None:
    task = Task(kind, "accuracy", ("a", "b", "c") if kind == "classes" else ())
    label = np.sort(np.random.default_rng(0).integers(0, 3, 600))
    if kind == "regression":
        label = np.sort(np.random.default_rng(0).normal(size=600)).astype(np.float32)
    sorted_splits = [finding for finding in audit(make(label=label, task=task)) if finding.check == "order"]
    assert [finding.split for finding in sorted_splits] == ["train", "validation", "test"]
    shuffled = np.random.default_rng(3).permutation(label)
    assert not [finding for finding in audit(make(label=shuffled, task=task)) if finding.check == "order"]


def test_values_of_a_table() -> None:
    x = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    x[:, 1] = 5
    x[:, 3] = np.random.default_rng(0).integers(0, 2, 600)
    data = make(x=x, spec=Table(4, (0, 0, 0, 2)))
    labelled = data.require_labelled()
    x[labelled.test.rows[3], 0] = np.inf
    x[labelled.test.rows[4], 3] = 2  # there are categories 0 and 1
    x[labelled.test.rows[5], :] = np.nan
    findings = [finding for finding in audit(data) if finding.check == "values" and finding.split == "test"]
    by_message = {finding.message.partition(":")[0]: finding for finding in findings}
    assert by_message["rows that have infinite values"].rows == (int(labelled.test.rows[3]),)
    assert by_message["rows that have a code that is not a category"].rows == (int(labelled.test.rows[4]),)
    assert by_message["rows that hold nothing but empty cells"].severity == "warning"
    assert by_message["constant columns"].message.endswith(": 1")
    assert by_message["4 empty cells, in columns 0, 1, 2, 3"].severity == "info"


def test_values_of_a_grid_and_of_tokens() -> None:
    x = np.random.default_rng(0).normal(size=(600, 2, 8)).astype(np.float32)
    data = make(x=x, spec=Grid(2, (8,), (4,)))
    x[data.require_labelled().train.rows[0], 1, 3] = np.nan
    x[data.require_labelled().train.rows[1]] = 0
    by_message = {finding.message: finding for finding in audit(data) if finding.check == "values" and finding.count}
    assert by_message["rows that have NaN: 1"].severity == "error"
    assert by_message["rows that hold one value everywhere: 1"].rows == (int(data.require_labelled().train.rows[1]),)
    ids = np.random.default_rng(0).integers(1, 50, (600, 6))
    data = make(x=ids, spec=Tokens(6, 50, pad=0))
    ids[data.require_labelled().train.rows[2]] = 0
    ids[data.require_labelled().train.rows[3], 0] = 50
    by_message = {finding.message: finding for finding in audit(data) if finding.check == "values"}
    assert by_message["rows that hold nothing but padding: 1"].rows == (int(data.require_labelled().train.rows[2]),)
    assert by_message["rows that have an id outside the vocabulary: 1"].severity == "error"


def test_reading_in_small_batches_gives_the_same_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    group = np.arange(600) // 10
    x = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    x[7] = x[300]
    x[8, 1] = np.inf
    findings = audit(make(x=x, group=group))
    monkeypatch.setattr("dabsmix.data.audit.BYTES", 100)
    assert audit(make(x=x, group=group)) == findings


def test_no_labels_and_an_empty_split() -> None:
    data = make()
    bare = replace(data, labelled=None)
    assert [finding.message for finding in audit(bare) if finding.check == "splits"][1].startswith(
        "there are no labels"
    )
    labelled = data.require_labelled()
    emptied = replace(labelled, test=labelled.test.take(np.arange(0)))
    empty = only(audit(replace(data, labelled=emptied)), "splits", "test")
    assert empty.severity == "error"


def test_rendering() -> None:
    data = make()
    labelled = data.require_labelled()
    x = np.asarray(labelled.test.inputs[0])
    x[labelled.test.rows[:30]] = x[labelled.train.rows[:30]]
    findings = audit(data)
    lines = render(findings).splitlines()
    assert len(lines) == len(findings)
    assert lines[0].startswith("error   leak       test       30 of its examples (30 %) are in train too (rows ")
    assert lines[0].endswith(", ...)")
    assert json.loads(render(findings, as_json=True))[0]["count"] == 30
    named = audit(replace(data, names=lambda rows: [f"t.csv:{row}" for row in rows]))
    assert named[0].names == tuple(f"t.csv:{row}" for row in findings[0].rows)
    line, first = render(named).splitlines()[0], findings[0].rows[0]
    assert f"in train too (t.csv:{first}, t.csv:" in line
    assert line.count("t.csv") == 5


def test_own_data_sorted_by_class_cause_no_warning() -> None:
    from pathlib import Path

    from dabsmix.source import Source

    data = make(label=np.sort(np.arange(600) % 3))
    assert any(finding.check == "order" for finding in audit(data))
    own = replace(data, source=Source(data=Path("photos"), modality="image", label="folder"))
    assert not any(finding.check == "order" for finding in audit(own))


def test_notes_from_reading_are_among_the_findings() -> None:
    findings = audit(replace(make(), notes=("3 of 300 rows were skipped: no text: 3.",)))
    assert [finding.message for finding in findings if finding.check == "reading"] == [
        "3 of 300 rows were skipped: no text: 3."
    ]
