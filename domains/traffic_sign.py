"""German traffic signs, GTSRB (Stallkamp et al., 2011): 43 kinds of sign, filmed in tracks of 30 frames per sign."""

import csv
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes, walk
from dabsmix.modalities.image import Listing, file_pixels, four_fifths, sized_domains

ARCHIVE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
TRAIN, TEST, LABELS = "Final_Training/Images", "Final_Test/Images", "GT-final_test.csv"


def _read(folder: Path, protocol: str) -> Listing:
    """Upstream's train and test, validation by physical sign; under ``dabs`` four fifths of each class of train.

    A training file is ``CLASS/TRACK_FRAME.ppm``; the frames of a track show one sign, driving up to it.
    """
    files = [f"{TRAIN}/{file}" for file in walk(folder / TRAIN, (".ppm",))]
    names = [file.split("/")[2] for file in files]
    classes = tuple(sorted(set(names)))
    sign = [file.rsplit("_", 1)[0] for file in files]
    tables = []
    if protocol == "dabs":
        train, test = four_fifths(codes(names))
        notes = (
            "As in DABS, train and test are drawn by frame, so both have frames of the same physical signs. DABS's "
            "draw depends on the order of its file system; this one is over sorted names.",
        )
    else:
        labels = _test_labels(folder / LABELS, classes)
        tests = [f"{TEST}/{file}" for file in sorted(labels)]
        train, test = np.arange(len(files)), np.arange(len(files), len(files) + len(tests))
        names += [classes[labels[file]] for file in sorted(labels)]
        files, sign, tables = files + tests, sign + tests, [LABELS]
        notes = ("Validation has other physical signs (tracks) than train.",)
    return Listing(
        folder=folder,
        files=files,
        tables=tables,
        count=len(files),
        pixels=file_pixels(folder, files),
        label=codes(names),
        train=train,
        test=test,
        task=Task("classes", "accuracy", classes),
        group=codes(sign),
        notes=notes,
    )


def _test_labels(path: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """Class number of each test image, from upstream's table (semicolons, one header row)."""
    numbers: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter=";"), 2):
                name = f"{int(row['ClassId']):05d}"
                if name not in classes:
                    raise UserError(f"{path}, row {number}: class {name} has no folder in {TRAIN}")
                numbers[row["Filename"]] = classes.index(name)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {ARCHIVE}/GTSRB_Final_Test_GT.zip holds it") from error
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no table with Filename and ClassId ({error}); fetch it again") from error
    return numbers


DOMAINS = sized_domains(
    "traffic_sign",
    _read,
    dabs="both sizes",
    title="GTSRB, 43 German traffic signs (Stallkamp et al., 2011)",
    licence="not stated",
    folder="GTSRB",
    needs=(LABELS, f"{TRAIN}/*/*.ppm", f"{TEST}/*.ppm"),
    sizes="39,209 / 12,630",
    views="crop",
    downloads=(
        Download((f"{ARCHIVE}/GTSRB_Final_Training_Images.zip",), "GTSRB_Final_Training_Images.zip"),
        Download(
            (f"{ARCHIVE}/GTSRB_Final_Test_Images.zip",),
            "GTSRB_Final_Test_Images.zip",
            "md5:c7e4e6327067d32654124b0fe9e82185",
            "torchvision 0.27.1, datasets/gtsrb.py",
        ),
        Download(
            (f"{ARCHIVE}/GTSRB_Final_Test_GT.zip",),
            "GTSRB/GTSRB_Final_Test_GT.zip",
            "md5:fe31e9c9270bbcd7b84b7f21a9d9d9e5",
            "torchvision 0.27.1, datasets/gtsrb.py",
        ),
    ),
)
