"""Adult (Kohavi and Becker 1996; UCI): income over 50,000 dollars, from six numeric and eight categorical columns."""

from pathlib import Path

import numpy as np

from dabsmix.data.cache import fingerprint
from dabsmix.data.domain import Data, Domain, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.errors import UserError
from dabsmix.modalities.columns import Column, fit, scan, store
from dabsmix.modalities.tables import TableSource
from dabsmix.modalities.tabular import supervised

CLASSES = ("<=50K", ">50K")
FEATURES = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
)
LABEL = "income"
MISSING = ("?",)
ROWS = (32_561, 16_281)


def _load(folder: Path, protocol: str) -> Data:
    sources = tuple(_source(folder / name) for name in ("adult.data", "adult.test"))
    digest = fingerprint(folder, [source.path for source in sources])

    def columns() -> tuple[tuple[Column, ...], tuple[Column, ...]]:
        table = scan(sources, MISSING)
        return tuple(table[name] for name in FEATURES), (table[LABEL],)

    matrix = store("adult", digest, sources, columns, missing=MISSING, filled=frozenset([LABEL]))
    # adult.test ends its labels with a full stop
    names = [name.rstrip(".") for name in matrix.others[0].categories or ()]
    if set(names) != set(CLASSES):
        raise UserError(f"{folder}: the labels are {', '.join(names)}, not {' and '.join(CLASSES)}; fetch it again")
    label = np.array([CLASSES.index(name) for name in names])[matrix.extra[:, 0].astype(np.int64)]
    rows = np.arange(len(label))
    first, test = rows[: matrix.lengths[0]], rows[matrix.lengths[0] :]
    train, validation = (first[part] for part in carve(len(first), label=label[first]))
    cut = "" if matrix.lengths == ROWS else f" The files hold {len(rows)} of upstream's {sum(ROWS)} rows."
    return supervised(
        matrix,
        fit("adult", digest, matrix, train, FEATURES if protocol == "dabs" else ()),
        Task("classes", "accuracy", CLASSES),
        (train, validation, test),
        label,
        source=digest,
        notes=(f"Test is adult.test; validation is a seeded tenth of adult.data, by class.{cut}",),
    )


def _source(path: Path) -> TableSource:
    if not path.is_file():
        raise UserError(f"{path} is missing; fetch it from {DOWNLOADS[0].urls[0].rpartition('/')[0]}/")
    with path.open("rb") as stream:
        is_comment = stream.read(1) == b"|"  # adult.test begins with one
    return TableSource(path, (*FEATURES, LABEL), skip=int(is_comment))


DOWNLOADS = (
    Download(
        ("https://archive.ics.uci.edu/ml/machine-learning-databases/adult/adult.data",),
        "adult/adult.data",
        "sha256:5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        "GruAna/PreprocessData.jl, src/datasets/tabular/adult.jl",
    ),
    Download(
        ("https://archive.ics.uci.edu/ml/machine-learning-databases/adult/adult.test",),
        "adult/adult.test",
    ),
)

DOMAINS = (
    Domain(
        name="adult",
        modality="tabular",
        title="Adult, income from the census of 1994 (Kohavi and Becker 1996; UCI)",
        licence="CC BY 4.0",
        folder="adult",
        needs=("adult.data", "adult.test"),
        load=_load,
        sizes="32,561 / 16,281",
        downloads=DOWNLOADS,
    ),
)
