"""EuroSAT (Helber et al., 2019): 27,000 Sentinel-2 pictures of ten kinds of land, 64x64, in colour and in 13 bands."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes, lines, rows_named, split_note, walk
from dabsmix.modalities.image import Listing, file_pixels, sized_domains

BANDS = 13
PARTS = ("train", "val", "test")
LISTS = "https://storage.googleapis.com/remote_sensing_representations"
CITED = "microsoft/torchgeo @720cf5b, torchgeo/datasets/eurosat.py"
LIST_SUMS = ("908f142e73d6acdf3f482c5e80d851b1", "95de90f2aa998f70a3b2416bfe0687b4", "7ae5ab94471417b6e315763121e67c5f")

# By band, as DABS states them (alextamkin/dabs @226a951, src/datasets/satellite_images/eurosat.py).
MEAN = (1354.3003, 1117.7579, 1042.28, 947.6443, 1199.6334, 2001.9829, 2372.5579, 2299.6663, 731.0175, 12.0956,
        1822.4083, 1119.5759, 2598.4456)  # fmt: skip
STD = (244.0469, 323.4128, 385.0928, 584.1638, 566.0543, 858.5753, 1083.6704, 1103.0342, 402.9594, 4.7207,
       1002.4071, 759.608, 1228.4104)  # fmt: skip


def _read(suffix: str, folder: Path, protocol: str) -> Listing:
    """Folders of classes. The split is that of three lists (Neumann et al., 2019); DABS draws its own.

    DABS pretrains on 81 % of the images (its ``eurosat``) and transfers to 9 % (train) and 1 % (test) that pretraining
    does not see (its ``eurosat_transfer``); both are in one domain here.
    """
    files = walk(folder, (suffix,))
    names = [file.split("/")[0] for file in files]
    tables: list[Path] = []
    notes: tuple[str, ...]
    if protocol == "dabs":
        order = np.random.RandomState(42).permutation(len(files))
        tenth = len(files) // 10
        pretrain, transfer = order[: len(files) - tenth], order[len(files) - tenth :]
        pretrain = np.sort(pretrain[: len(pretrain) - len(pretrain) // 10])
        train, test = np.sort(transfer[: tenth - tenth // 10]), np.sort(transfer[tenth - tenth // 10 :])
        validation = None
        notes = (
            split_note([files[row] for row in test]),
            "DABS shuffles the order of tensorflow-datasets, which is another: the rows of its split are not these.",
        )
    else:
        rows = {Path(file).stem: row for row, file in enumerate(files)}
        tables = [folder / f"eurosat-{part}.txt" for part in PARTS]
        for path, checksum in zip(tables, LIST_SUMS, strict=True):
            if not path.exists():
                raise UserError(f"{path}: no such file; fetch {LISTS}/{path.name} (md5 {checksum}) and put it there")
        train, validation, test = (rows_named(path, [Path(name).stem for name in lines(path)], rows) for path in tables)
        pretrain = None
        notes = ("The split is that of Neumann et al. (2019): 60 % train, 20 % validation, 20 % test.",)
    bands = suffix == ".tif"
    return Listing(
        folder=folder,
        files=files,
        tables=[path.name for path in tables],
        count=len(files),
        pixels=partial(_bands, folder, files) if bands else file_pixels(folder, files),
        label=codes(names),
        train=train,
        validation=validation,
        test=test,
        pretrain=pretrain,
        task=Task("classes", "accuracy", tuple(sorted(set(names)))),
        notes=notes,
        channels=BANDS if bands else 3,
        depth=16 if bands else 8,
        statistics=(MEAN, STD) if bands and protocol == "dabs" else None,
    )


def _bands(folder: Path, files: list[str], row: int, side: int) -> NDArray[np.uint16]:
    """One 13-band TIFF as uint16 ``(13, side, side)``.

    Raises:
        UserError: it is damaged, or not 13 bands of 16 bits.
    """
    import tifffile

    path = folder / files[row]
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            values = page.asarray()
            axes = page.axes
    except Exception as error:  # a damaged directory raises many kinds of exception
        raise UserError(f"{path}: damaged TIFF ({' '.join(str(error).split())}); fetch the data set again") from error
    if axes == "YXS":  # otherwise the bands come first
        values = values.transpose(2, 0, 1)
    if values.shape != (BANDS, side, side) or values.dtype != np.uint16:
        raise UserError(f"{path}: {values.shape} {values.dtype}; expected {(BANDS, side, side)} in 16 bits")
    return np.ascontiguousarray(values)


def _downloads(folder: str) -> tuple[Download, ...]:
    archive = Download((f"https://zenodo.org/records/7711810/files/{folder}.zip",), f"{folder}.zip")
    return archive, *(
        Download((f"{LISTS}/eurosat-{part}.txt",), f"{folder}/eurosat-{part}.txt", f"md5:{checksum}", CITED)
        for part, checksum in zip(PARTS, LIST_SUMS, strict=True)
    )


DOMAINS = (
    *sized_domains(
        "eurosat",
        partial(_read, ".jpg"),
        title="EuroSAT, land from Sentinel-2 in colour (Helber et al., 2019)",
        licence="MIT",
        folder="EuroSAT_RGB",
        needs=(*(f"eurosat-{part}.txt" for part in PARTS), "*/*.jpg"),
        downloads=_downloads("EuroSAT_RGB"),
        sizes="16,200 / 5,400",
        sides=((64, 8), (224, 16)),
    ),
    *sized_domains(
        "eurosat_all",
        partial(_read, ".tif"),
        title="EuroSAT, land from Sentinel-2 in 13 bands (Helber et al., 2019)",
        licence="MIT",
        folder="EuroSAT_MS",
        needs=(*(f"eurosat-{part}.txt" for part in PARTS), "*/*.tif"),
        downloads=_downloads("EuroSAT_MS"),
        sizes="16,200 / 5,400",
        sides=((64, 8),),
        views="none",
        batch_size=64,
        aliases=("eurosat_transfer",),
    ),
)
