"""ChestX-ray8 (Wang et al., 2017): 112,120 chest radiographs of 30,805 patients, findings taken from their reports."""

import csv
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes, lines, rows_named, split_note
from dabsmix.modalities.image import Listing, file_pixels, sized_domains

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)  # the eight of the paper; the tables have six more
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "metadata.csv")
LISTS = ("train_val_list.txt", "test_list.txt")
SOURCE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"


def _read(folder: Path, protocol: str) -> Listing:
    """Upstream's lists, which share no patient; under ``dabs`` nine tenths of all images, drawn by image."""
    table = next((name for name in TABLES if (folder / name).is_file()), None)
    if table is None:
        raise UserError(f"{folder}: none of {', '.join(TABLES)}; fetch one from {SOURCE} and put it there")
    findings = _table(folder / table)
    images = sorted(findings)
    files = [f"images/{image}" for image in images]
    if protocol == "dabs":
        order = np.random.RandomState(42).permutation(len(files))
        train, test = np.sort(order[: int(0.9 * len(files))]), np.sort(order[int(0.9 * len(files)) :])
        lists = []
        notes = [
            split_note([images[row] for row in test]),
            "As in DABS, train and test are drawn by image, so both have images of the same patients. DABS's draw "
            "depends on the order of its file system; this one is over sorted names.",
        ]
    else:
        rows = {image: row for row, image in enumerate(images)}
        train, test = (rows_named(folder / name, lines(folder / name), rows) for name in LISTS)
        lists, notes = list(LISTS), ["The split is upstream's; validation has other patients than train."]
    return Listing(
        folder=folder,
        files=files,
        tables=[table, *lists],
        count=len(files),
        pixels=file_pixels(folder, files),
        label=np.array([findings[image] for image in images], dtype=np.uint8).reshape(-1, len(FINDINGS)),
        train=train,
        test=test,
        task=Task("multilabel", "auroc_macro", FINDINGS),
        group=codes([image.split("_")[0] for image in images]),  # PATIENT_NUMBER.png
        notes=tuple(notes),
    )


def _table(path: Path) -> dict[str, list[bool]]:
    """Findings of each image; the column reads like ``Cardiomegaly|Effusion``."""
    findings = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                named = row["Finding Labels"].split("|")
                findings[row["Image Index"]] = [name in named for name in FINDINGS]
    except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: no table with 'Image Index' and 'Finding Labels' ({error}); fetch it again"
        ) from error
    return findings


DOMAINS = sized_domains(
    "xray8",
    _read,
    dabs="large size",
    title="ChestX-ray8, eight findings in chest radiographs (Wang et al., 2017)",
    licence="free use, citing the paper and NIH",
    folder="xray8",
    needs=("|".join(TABLES), *LISTS, "images/*.png"),
    sizes="86,524 / 25,596",
    manual=f"fetch the twelve archives, the table and the two lists from {SOURCE}; unpack the images to xray8/images/",
    views="none",
)
