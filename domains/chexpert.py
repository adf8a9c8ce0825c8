"""CheXpert (Irvin et al., 2019): 224,316 chest radiographs of 65,240 patients, findings taken from their reports."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes
from dabsmix.modalities.image import Listing, file_pixels, sized_domains

FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
VALUES = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": 0, "-1.0": 0}


def _read(folder: Path, protocol: str) -> Listing:
    """Upstream's train and valid, the five findings of its competition; blank or uncertain findings count as absent."""
    tables = [_table(folder / f"{part}.csv") for part in ("train", "valid")]
    files = [file for table in tables for file, _ in table]
    first = len(tables[0])
    return Listing(
        folder=folder,
        files=files,
        tables=("train.csv", "valid.csv"),
        count=len(files),
        pixels=file_pixels(folder, files),
        label=np.array([label for table in tables for _, label in table], dtype=np.uint8),
        train=np.arange(first),
        test=np.arange(first, len(files)),
        task=Task("multilabel", "auroc_macro", FINDINGS),
        group=_patients(files),
        notes=(
            "Findings that are blank or uncertain count as absent, as in DABS; the test part is upstream's valid.csv.",
        ),
    )


def _patients(files: list[str]) -> NDArray[np.int64]:
    """``train/patient00001/study1/view1_frontal.jpg``."""
    return codes([file.split("/")[1] for file in files])


def _table(path: Path) -> list[tuple[str, list[int]]]:
    """Image (relative to the data set's folder) and findings of each row."""
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                image = row["Path"].split("/", 1)[1]  # the first part is the folder's name
                wrong = [name for name in FINDINGS if row[name] not in VALUES]
                if wrong:
                    raise UserError(f"{path}, row {number}: {wrong[0]} is {row[wrong[0]]!r}, not 1, 0, -1 or blank")
                if image.count("/") != 3:
                    raise UserError(f"{path}, row {number}: {row['Path']!r} names no patient, study and view")
                rows.append((image, [VALUES[row[name]] for name in FINDINGS]))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; is the archive unpacked whole?") from error
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no table with Path and the findings ({error}); unpack it again") from error
    return rows


DOMAINS = sized_domains(
    "chexpert",
    _read,
    dabs="large size",
    title="CheXpert, five findings in chest radiographs (Irvin et al., 2019)",
    licence="Stanford research use agreement, by registration",
    folder="CheXpert-v1.0-small",
    needs=("train.csv", "valid.csv", "train/*/*/*.jpg", "valid/*/*/*.jpg"),
    sizes="223,414 / 234",
    manual="register at https://stanfordmlgroup.github.io/competitions/chexpert/ and unpack CheXpert-v1.0-small.zip",
    transfers=("chexpert", "xray8"),
    views="none",
)
