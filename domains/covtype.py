"""Covertype (Blackard and Dean 1999; UCI): seven kinds of forest from 54 cartographic columns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint
from dabsmix.data.domain import Data, Domain, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import divide_in_three
from dabsmix.errors import UserError
from dabsmix.modalities.augmentation import TableViews
from dabsmix.modalities.columns import fit
from dabsmix.modalities.tables import TableSource
from dabsmix.modalities.tabular import numeric_table, supervised

CLASSES = ("spruce/fir", "lodgepole pine", "ponderosa pine", "cottonwood/willow", "aspen", "Douglas fir", "krummholz")
MEASURED = (
    "Elevation",
    "Aspect",
    "Slope",
    "Horizontal_Distance_To_Hydrology",
    "Vertical_Distance_To_Hydrology",
    "Horizontal_Distance_To_Roadways",
    "Hillshade_9am",
    "Hillshade_Noon",
    "Hillshade_3pm",
    "Horizontal_Distance_To_Fire_Points",
)
HEADER = (*MEASURED, *(f"Wilderness_Area{i}" for i in range(1, 5)), *(f"Soil_Type{i}" for i in range(1, 41)))
LABEL = "Cover_Type"
ROWS = 581_012
TRAIN, VALIDATION = 11_340, 3_780


def _load(folder: Path, protocol: str) -> Data:
    source = _source(folder)
    digest = fingerprint(folder, [source.path])
    matrix = numeric_table("covtype", digest, source, LABEL, len(CLASSES), first=1)
    if [column.name for column in matrix.columns] != list(HEADER):
        raise UserError(f"{source.path}: its columns are not those of Covertype; fetch the file again")
    label = matrix.extra[:, 0].astype(np.int64)
    *rows, note = _split(label)
    # i-Mix leaves the 44 columns of zeros and ones as they are: in its own deviations, a rare soil would be over 100
    as_is = HEADER if protocol == "dabs" else HEADER[len(MEASURED) :]
    data = supervised(
        matrix,
        fit("covtype", digest, matrix, rows[0], as_is),
        Task("classes", "accuracy", CLASSES),
        (rows[0], rows[1], rows[2]),
        label,
        source=digest,
        pretrain=np.concatenate(rows[:2]) if protocol == "imix" else None,
        notes=(
            note,
            "Each of the 44 columns of zeros and ones is a token of its own, as in i-Mix, whose scores are the ones to "
            "compare with; most of them hold 0 in most rows, so an algorithm that has to tell a swapped token from "
            "the original (ShED) cannot do so there.",
        ),
    )
    return replace(data, augment=TableViews(tuple(range(len(MEASURED)))).augment)


def _source(folder: Path) -> TableSource:
    """The first one that exists: upstream's file, the same file unpacked, or a copy with a header line."""
    for name, header in (("covtype.data.gz", True), ("covtype.data", True), ("covtype.csv", False)):
        if (folder / name).is_file():
            return TableSource(folder / name, (*HEADER, LABEL) if header else ())
    raise UserError(f"{folder}: covtype.data.gz is missing; fetch it from {DOWNLOADS[0].urls[0]}")


def _split(label: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], str]:
    """Rows of train, validation and test, and a note on their source."""
    rows = np.arange(len(label))
    if len(label) == ROWS:
        note = (
            "The split is upstream's: 11,340 rows train, 3,780 validation, the rest test. i-Mix pretrains and fits on "
            "train and validation together."
        )
        return rows[:TRAIN], rows[TRAIN : TRAIN + VALIDATION], rows[TRAIN + VALIDATION :], note
    train, validation, test = divide_in_three(len(label), label=label)
    note = (
        f"These are {len(label)} of Covertype's {ROWS} rows, so upstream's split by row number does not apply: a "
        "seeded fifth of every class is the test, a tenth of the rest validation. Not comparable with published scores."
    )
    return train, validation, test, note


DOWNLOADS = (
    Download(
        (
            "https://archive.ics.uci.edu/ml/machine-learning-databases/covtype/covtype.data.gz",
            "https://ndownloader.figshare.com/files/5976039",
        ),
        "covtype/covtype.data.gz",
        "sha256:614360d0257557dd1792834a85a1cdebfadc3c4f30b011d56afee7ffb5b15771",
        "scikit-learn, sklearn/datasets/_covtype.py",
    ),
)

DOMAINS = (
    Domain(
        name="covtype",
        modality="tabular",
        title="Covertype, forest cover from cartography (Blackard and Dean 1999; UCI)",
        licence="CC BY 4.0",
        folder="covtype",
        load=_load,
        sizes="11,340 / 565,892",
        downloads=DOWNLOADS,
        batch_size=512,
        needs=("covtype.data.gz|covtype.data|covtype.csv",),
    ),
)
