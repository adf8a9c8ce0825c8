"""HIGGS (Baldi et al. 2014; UCI): simulated collisions, signal or background, 28 columns, eleven million rows."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint
from dabsmix.data.domain import BATCH_SIZE, Data, Domain, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.errors import UserError
from dabsmix.modalities.columns import fit
from dabsmix.modalities.tables import TableSource
from dabsmix.modalities.tabular import numeric_table, supervised

CLASSES = ("background", "signal")
LOW_LEVEL = (
    "lepton_pT",
    "lepton_eta",
    "lepton_phi",
    "missing_energy_magnitude",
    "missing_energy_phi",
    *(f"jet_{jet}_{quantity}" for jet in range(1, 5) for quantity in ("pt", "eta", "phi", "b-tag")),
)
HEADER = (*LOW_LEVEL, "m_jj", "m_jjj", "m_lv", "m_jlv", "m_bb", "m_wbb", "m_wwbb")
LABEL = "class_label"
ROWS, TEST_ROWS = 11_000_000, 500_000
DRAWN = {"higgs_100k": 100_000, "higgs_1m": 1_000_000}

Indices = NDArray[np.int64]


def _load(part: str, folder: Path, protocol: str) -> Data:
    source = _source(folder)
    digest = fingerprint(folder, [source.path])
    matrix = numeric_table("higgs", digest, source, LABEL, len(CLASSES), first=0)
    label = matrix.extra[:, 0].astype(np.int64)
    divide = _imix if part in DRAWN else _dabs if protocol == "dabs" else _upstream
    fitted_rows, test, note = divide(part, len(label))
    if protocol == "dabs" and part not in DRAWN:
        train, validation, chosen = fitted_rows, test, "DABS tests on the split that it watches."
    else:
        train, validation = (fitted_rows[rows] for rows in carve(len(fitted_rows), label=label[fitted_rows]))
        chosen = "Validation is a seeded tenth of the training rows, by class."
    return supervised(
        matrix,
        fit("higgs", digest, matrix, train, HEADER if protocol == "dabs" else ()),
        Task("classes", "accuracy", CLASSES),
        (train, validation, test),
        label,
        source=digest,
        notes=(note, chosen),
    )


def _upstream(part: str, n: int) -> tuple[Indices, Indices, str]:
    """Upstream's convention: the last 500,000 rows are the test; for a shortened file, the last fifteenth."""
    rows = np.arange(n)
    held_out = min(TEST_ROWS, n // 15)
    first = 0 if part == "higgs" else n - n // 10
    whose = (
        "All rows before them train."
        if part == "higgs"
        else "What else is in the last tenth of the file trains; `higgs` pretrains on it too, never on the test."
    )
    cut = "" if n == ROWS else f" The file holds {n} of upstream's {ROWS} rows: not comparable with published scores."
    return rows[first : n - held_out], rows[n - held_out :], f"The last {held_out} rows are the test. {whose}{cut}"


def _imix(part: str, n: int) -> tuple[Indices, Indices, str]:
    """i-Mix (Lee et al. 2021): this many rows from all before the test, drawn with seed 1 as its code draws 100,000."""
    held_out = min(TEST_ROWS, n // 15)
    count = min(DRAWN[part], n - held_out)
    rows = np.sort(np.random.RandomState(1).choice(n - held_out, count, replace=False))
    note = f"{count} rows drawn with seed 1 train, the last {held_out} rows are the test."
    if part == "higgs_1m":
        note += " i-Mix's code takes all rows where its paper says a million, so which million it was is not known."
    if count < DRAWN[part]:
        note += f" The file holds {n} of upstream's {ROWS} rows: not comparable with published scores."
    return rows, np.arange(n - held_out, n), note


def _dabs(part: str, n: int) -> tuple[Indices, Indices, str]:
    """DABS: nine tenths for pretraining and the last for transfer; each is shuffled, and its last tenth is the test."""
    pretrained = int(np.ceil(0.9 * n))
    rows = np.arange(n)[:pretrained] if part == "higgs" else np.arange(n)[n - int(np.floor(0.1 * n)) :]
    # pandas.DataFrame.sample(frac=1, random_state=42) draws this permutation
    rows = rows[np.random.RandomState(42).permutation(len(rows))]
    train, test = int(np.ceil(0.9 * len(rows))), int(np.floor(0.1 * len(rows)))
    which = "first nine tenths" if part == "higgs" else "last tenth"
    note = (
        f"The {which} of the file, shuffled with seed 42, the last tenth of them the test, as DABS has it; it counts "
        "in the order in which TensorFlow Datasets stores the rows, which is not the file's."
    )
    return np.sort(rows[:train]), np.sort(rows[len(rows) - test :]), note


def _source(folder: Path) -> TableSource:
    for name in ("HIGGS.csv.gz", "HIGGS.csv"):
        if (folder / name).is_file():
            return TableSource(folder / name, (LABEL, *HEADER))
    raise UserError(f"{folder}: HIGGS.csv.gz is missing; fetch it from {DOWNLOADS[0].urls[0]}")


DOWNLOADS = (
    Download(
        ("https://archive.ics.uci.edu/ml/machine-learning-databases/00280/HIGGS.csv.gz",),
        "higgs/HIGGS.csv.gz",
        "sha256:ea302c18164d4e3d916a1e2e83a9a8d07069fa6ebc7771e4c0540d54e593b698",
        "tensorflow/datasets, tensorflow_datasets/url_checksums/higgs.txt",
    ),
)

DOMAINS = tuple(
    Domain(
        name=name,
        modality="tabular",
        title=title,
        licence="CC BY 4.0",
        folder="higgs",
        load=partial(_load, name),
        downloads=DOWNLOADS,
        sizes=sizes,
        transfers=transfers,
        needs=("HIGGS.csv.gz|HIGGS.csv",),
        batch_size=512 if name in DRAWN else BATCH_SIZE,
        dabs="higgs" if name in DRAWN else "",
        revisions={"dabs": 1},  # since then, training takes the rows that were held out for validation
    )
    for name, title, sizes, transfers in (
        ("higgs", "HIGGS, signal or background (Baldi et al. 2014; UCI)", "10,500,000 / 500,000", ("higgs_transfer",)),
        ("higgs_transfer", "HIGGS, the last tenth of its rows (as DABS divides it)", "600,000 / 500,000", ()),
        ("higgs_100k", "HIGGS, 100,000 of its rows (as i-Mix draws them)", "100,000 / 500,000", ()),
        ("higgs_1m", "HIGGS, a million of its rows (as i-Mix's paper has it)", "1,000,000 / 500,000", ()),
    )
)
