"""Proteins, genomics and wafers against generated files in upstream's formats; sizes, splits, labels, damage, runs."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import upstream_sequence as upstream

from dabsmix.cli import main
from dabsmix.data.domain import Data
from dabsmix.domains.proteins import RESIDUES, TASKS
from dabsmix.errors import UserError
from dabsmix.registry import domain
from dabsmix.spec import Grid, Tokens
from dabsmix.testing import check_domain


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def load(root: Path, name: str, protocol: str = "v1") -> Data:
    card = domain(name)
    return check_domain(card, root / card.folder, protocol=protocol)


# --- proteins


@pytest.mark.parametrize("protocol", ["v1", "dabs"])
@pytest.mark.parametrize("name", TASKS)
def test_protein_rows_are_the_files_rows(tmp_path: Path, name: str, protocol: str) -> None:
    folder = upstream.write_tape(tmp_path, TASKS[name].folder)
    data = load(tmp_path, name, protocol)
    assert data.specs == (Tokens(128, 26, 0),)
    labelled = data.require_labelled()
    ends = {"train": "train", "validation": "valid", "test": "valid" if protocol == "dabs" else TASKS[name].test}
    for part, split in labelled.splits.items():
        records = json.loads((folder / f"{folder.name}_{ends[part]}.json").read_text())
        order = np.random.RandomState(42).permutation(60) if protocol == "dabs" and part != "train" else range(60)
        ids = np.asarray(split.inputs[0][split.rows])
        for row, place in enumerate(order):
            text = records[place]["primary"][:128]
            assert "".join(RESIDUES.symbols[code] for code in ids[row]) == text + "X" * (128 - len(text))


def test_regression_targets_are_raw(tmp_path: Path) -> None:
    folder = upstream.write_tape(tmp_path, "stability")
    test = load(tmp_path, "stability").require_labelled().test
    records = json.loads((folder / "stability_test.json").read_text())
    assert test.label is not None
    np.testing.assert_allclose(test.label, [record["stability_score"][0] for record in records], rtol=1e-6)
    assert test.group is not None
    assert len(np.unique(test.group)) == 10  # parents


def test_secondary_structure_under_dabs_learns_padding_and_does_not_score_it(tmp_path: Path) -> None:
    upstream.write_tape(tmp_path, "secondary_structure")
    ours, theirs = (load(tmp_path, "secondary_struct", protocol).require_labelled() for protocol in ("v1", "dabs"))
    assert ours.task.classes == ("helix", "strand", "coil")
    assert theirs.task.classes == ("helix", "strand", "coil", "padding")
    assert ours.train.label is not None
    assert theirs.train.label is not None
    assert theirs.test.label is not None
    np.testing.assert_array_equal(np.where(ours.train.label < 0, 3, ours.train.label), theirs.train.label)
    assert theirs.test.label.min() == -1
    assert theirs.test.label.max() == 2


def test_pfam_keeps_its_transfer_part_apart(tmp_path: Path) -> None:
    folder = upstream.write_tape(tmp_path, "pfam", count=90)
    pfam, transfer = load(tmp_path, "pfam"), load(tmp_path, "pfam_transfer")
    labelled = pfam.require_labelled()
    scored = transfer.require_labelled()
    assert (len(pfam.pretrain), len(labelled.validation), len(labelled.test)) == (81, 9, 79)
    assert sum(len(split) for split in scored.splits.values()) == 11  # an eighth of 90
    tested = {row.tobytes() for row in np.asarray(labelled.test.inputs[0][labelled.test.rows])}
    transferred = {row.tobytes() for split in scored.splits.values() for row in split.inputs[0][split.rows]}
    assert not tested & transferred
    records = json.loads((folder / "pfam_train.json").read_text())
    assert labelled.train.label is not None
    assert labelled.train.label.tolist() == [{5: 0, 17: 1, 401: 2}[records[row]["clan"]] for row in labelled.train.rows]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], r"damaged or truncated; fetch it again \(after record \d+\)"),
        (lambda text: text.replace('"primary": "', '"primary": "!', 1), "record 1: symbol '!' at position 1"),
        (lambda text: text.replace('"ss3": [', '"ss3": [0, ', 1), "record 1: .* labels for .* symbols"),
        (lambda text: text.replace('"ss3"', '"ss4"', 1), "record 1: a field is missing or wrong \\('ss3'\\)"),
        (lambda text: "{}", "expected a JSON list"),
        (lambda text: "[]", "holds no sequence"),
    ],
)
def test_damaged_json_is_reported(tmp_path: Path, damage: Any, message: str) -> None:
    folder = upstream.write_tape(tmp_path, "secondary_structure")
    path = folder / "secondary_structure_train.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message):
        domain("secondary_struct").load(folder, "v1")


def test_a_clan_missing_from_train_is_reported(tmp_path: Path) -> None:
    folder = upstream.write_tape(tmp_path, "pfam")
    path = folder / "pfam_valid.json"
    path.write_text(path.read_text().replace('"clan": 17', '"clan": 99', 1))
    with pytest.raises(UserError, match=r"no sequence of pfam_train\.json has its clan, 99"):
        domain("pfam").load(folder, "v1")


# --- genomics


def test_genomics_splits(tmp_path: Path) -> None:
    upstream.write_genomics(tmp_path)
    sizes = {
        ("genomics", "v1"): (60, 60, 60, 2),
        ("genomics", "dabs"): (54, 6, 6, 2),
        ("genomics_transfer_id", "v1"): (54, 6, 60, 2),
        ("genomics_transfer_id", "dabs"): (54, 6, 6, 2),
        ("genomics_transfer_ood", "v1"): (42, 6, 12, 3),
        ("genomics_transfer_ood", "dabs"): (54, 6, 6, 3),
    }
    for (name, protocol), expected in sizes.items():
        data = load(tmp_path, name, protocol)
        assert data.specs == (Tokens(250, 4),)
        labelled = data.require_labelled()
        lengths = tuple(len(split) for split in labelled.splits.values())
        assert (*lengths, len(labelled.task.classes)) == expected, (name, protocol)


def test_genomics_row_and_class(tmp_path: Path) -> None:
    folder = upstream.write_genomics(tmp_path)
    data = load(tmp_path, "genomics")
    text, label, *_ = (folder / "before_2011_in_tr.tsv").read_text().splitlines()[1].split("\t")
    assert "".join("ACGT"[code] for code in data.pretrain.batch(np.array([0]))[0][0]) == text
    assert data.pretrain.label is not None
    assert data.require_labelled().task.classes[data.pretrain.label[0]] == label


def test_damaged_genomics_is_reported(tmp_path: Path) -> None:
    folder = upstream.write_genomics(tmp_path)
    path = folder / "before_2011_in_tr.tsv"
    good = path.read_text()
    path.write_text(good.replace("A", "", 1))
    with pytest.raises(UserError, match=r"tr.tsv:\d+: 249 symbols where 250 are expected"):
        domain("genomics").load(folder, "v1")
    path.write_text(good[:-400])
    with pytest.raises(UserError, match="cells where the table has 4"):
        domain("genomics").load(folder, "v1")
    path.unlink()
    with pytest.raises(UserError, match=r"before_2011_in_tr\.tsv is missing"):
        domain("genomics").load(folder, "v1")


# --- wafers


@pytest.mark.parametrize("protocol", ["v1", "dabs"])
def test_wafers(tmp_path: Path, protocol: str) -> None:
    import h5py
    from PIL import Image

    folder = upstream.write_wafers(tmp_path)
    bare, transfer = load(tmp_path, "wafer", protocol), load(tmp_path, "wafer_transfer", protocol)
    assert bare.specs == transfer.specs == (Grid(3, (32, 32), (4, 4)),)
    assert bare.labelled is None
    labelled = transfer.require_labelled()
    # DABS averages over batches of 128
    assert labelled.task.metric == ("f1_weighted/128" if protocol == "dabs" else "f1_weighted")
    unlabelled = [row for row in range(120) if row % 3 == 2 and row > 30]
    pretrained = len(unlabelled) - (len(unlabelled) // 10 if protocol == "dabs" else 0)
    assert len(bare.pretrain) == pretrained
    assert set(bare.pretrain.rows) <= set(unlabelled)
    parts = [labelled.train, labelled.test] if protocol == "dabs" else list(labelled.splits.values())
    assert sum(map(len, parts)) == 120 - len(unlabelled)
    assert labelled.test.label is not None
    for row, code in zip(labelled.test.rows, labelled.test.label, strict=True):
        assert labelled.task.classes[code] == upstream.PATTERNS[row % 9].lower()
    with h5py.File(folder / "WM811K.mat") as file:
        row = int(labelled.test.rows[0])
        outer = file[file["data/waferMap"][0, row]]
        wafer = file[outer[0, 0]][()].T
    grey = Image.fromarray((np.repeat(wafer[:, :, None], 3, 2) * 127.5).astype(int).astype("uint8")).convert("RGB")
    expected = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    pixels = transfer.normalise(labelled.test.batch(np.array([0])))[0][0].numpy()
    np.testing.assert_allclose(pixels, expected if protocol == "dabs" else 2 * expected - 1, atol=1e-6)


def test_damaged_wafers_are_reported(tmp_path: Path) -> None:
    folder = upstream.write_wafers(tmp_path)
    path = folder / "WM811K.mat"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"damaged, or not the MATLAB 7\.3 file"):
        domain("wafer").load(folder, "v1")


# --- from the command line

RUNS = [
    ("secondary_struct", "v1"),
    *(
        pytest.param(*run, marks=pytest.mark.slow)
        for run in (
            ("pfam", "dabs"),
            ("scop", "v1"),
            ("secondary_struct", "dabs"),
            ("stability", "dabs"),
            ("fluorescence", "dabs"),
            ("genomics", "v1"),
            ("genomics_transfer_id", "v1"),
            ("wafer", "v1"),
        )
    ),
]


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dabsmix", *words])
    main()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "protocol"), RUNS)
def test_pretrain_and_transfer(tmp_path: Path, name: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.write_genomics(tmp_path)
    upstream.write_wafers(tmp_path)
    for folder in upstream.TAPE:
        upstream.write_tape(tmp_path, folder, count=90 if folder == "pfam" else 20)
    common = ["--data-root", str(tmp_path), "--out", str(tmp_path / "runs")]
    options = ["--protocol", protocol, "--encoder", "tiny", "--steps", "20", "--batch-size", "16"]
    command(monkeypatch, "pretrain", "--domain", name, "--algo", "dmix", *options, *common)
    target = {"pfam": "pfam_transfer", "genomics": "genomics_transfer_ood"}.get(name)
    task = [] if target is None else ["--task", target]
    command(monkeypatch, "transfer", *task, *common, *(["--labels", "1"] if protocol == "v1" else []))
    (path,) = (tmp_path / "runs" / f"{name}-dmix-s0" / "transfer").glob("*.json")
    record = json.loads(path.read_text())
    assert record["results"]
    if name == "secondary_struct":  # scored per residue, against a plain loop
        with np.load(path.with_suffix(".predictions.npz")) as arrays:
            label, scores = arrays["label"], arrays["linear@1"][0]
        right = scored = 0
        for row in range(len(label)):
            for place in range(128):
                if label[row, place] >= 0:
                    scored += 1
                    right += int(scores[row, place].argmax() == label[row, place])
        assert record["value"] == pytest.approx(right / scored)
