"""Writes small generated image sets in upstream's layouts. Everything here is generated, nothing is real.

An image of class c is one colour, ``colour(c)``, so that a test can tell from pixels alone which label they belong to.
"""

import csv
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class: red encodes it."""
    return 20 + 10 * number, 128, 64


def picture(path: Path, number: int, size: tuple[int, int] = (40, 48)) -> None:
    """One image file of class ``number``, in the best quality of JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if path.suffix in (".jpg", ".JPEG") else {}
    Image.new("RGB", size, colour(number)).save(path, **options)


def text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- CIFAR's pickles, opcode for opcode as Python 2 wrote them: its byte strings are beyond Python 3's pickler


def python2_pickle(value: Any) -> bytes:
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(raw)) + raw
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(item) for pair in value.items() for item in pair) + b"u"
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.uint8
    kind = b"cnumpy\ndtype\n" + _opcodes(("u1", 0, 1)) + b"R" + _opcodes((3, "|", None, None, None, -1, -1, 0)) + b"b"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _opcodes((0,)) + _opcodes("b") + b"tR"
    state = b"(" + _opcodes(1) + _opcodes(value.shape) + kind + _opcodes(False) + _opcodes(value.tobytes()) + b"t"
    return array + state + b"b"


def write_cifar100(root: Path, *, classes: int = 4, train: int = 5, test: int = 2) -> Path:
    """``train`` and ``test`` images of each class."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("test", test)):
        fine = [number for number in range(classes) for _ in range(count)]
        rows = np.stack([np.repeat(np.array(colour(number), np.uint8), 1024) for number in fine])
        entry = {"data": rows, "fine_labels": fine, "coarse_labels": [0] * len(fine), "batch_label": part}
        (folder / part).write_bytes(python2_pickle(entry))
    names = {"fine_label_names": [f"class{number}" for number in range(classes)], "coarse_label_names": ["all"]}
    (folder / "meta").write_bytes(python2_pickle(names))
    return folder


# --- folders of images with tables


def write_imagenet(root: Path, *, held: str = "validation") -> Path:
    folder = root / "imagenet"
    for number, name in enumerate(("n01440764", "n01443537", "n02084071")):
        for image in range(6):
            picture(folder / "train" / name / f"{name}_{image}.JPEG", number)
        picture(folder / held / name / f"ILSVRC2012_val_0000000{number}.JPEG", number)
    return folder


def write_tiny_imagenet(root: Path) -> Path:
    folder, names = root / "tiny-imagenet-200", ("n02124075", "n01443537")
    text(folder / "wnids.txt", names)
    validation = []
    for number, name in enumerate(sorted(names)):
        for image in range(5):
            picture(folder / "train" / name / "images" / f"{name}_{image}.JPEG", number, (64, 64))
        picture(folder / "val" / "images" / f"val_{9 - number}.JPEG", number, (64, 64))
        validation.append(f"val_{9 - number}.JPEG\t{name}\t0\t0\t62\t62")
    text(folder / "val" / "val_annotations.txt", validation)
    return folder


def write_cu_birds(root: Path) -> Path:
    """Every third image of a class is a test image."""
    folder, names = root / "CUB_200_2011", ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    files = [(number, f"{name}/{name[4:]}_{image}.jpg") for number, name in enumerate(names) for image in range(6)]
    for number, file in files:
        picture(folder / "images" / file, number)
    text(folder / "classes.txt", [f"{place} {name}" for place, name in enumerate(names, 1)])
    text(folder / "images.txt", [f"{place} {file}" for place, (_, file) in enumerate(files, 1)])
    text(folder / "image_class_labels.txt", [f"{place} {number + 1}" for place, (number, _) in enumerate(files, 1)])
    text(folder / "train_test_split.txt", [f"{place} {int(place % 3 > 0)}" for place in range(1, len(files) + 1)])
    return folder


def write_vgg_flower(root: Path) -> Path:
    """30 images, whose classes do not stand in order; ids count from 1."""
    from scipy.io import savemat

    folder = root / "flowers-102"
    label = np.array([3, 1, 2] * 10, dtype=np.uint8)
    for place, number in enumerate(label, 1):
        picture(folder / "jpg" / f"image_{place:05d}.jpg", int(number) - 1)
    savemat(folder / "imagelabels.mat", {"labels": label[None]})
    ids = np.arange(1, 31, dtype=np.uint16)[None]
    savemat(folder / "setid.mat", {"trnid": ids[:, :9], "valid": ids[:, 9:15], "tstid": ids[:, 15:]})
    return folder


def write_aircraft(root: Path) -> Path:
    """The aircraft's box, with inclusive corners counted from 1, is coloured; the rest is white."""
    data = root / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    boxes, place = [], 0
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        rows = []
        for number, variant in enumerate(("737-300", "A330-200", "Cessna 172")):
            for _ in range(count):
                place += 1
                image = Image.new("RGB", (80, 70), (255, 255, 255))
                image.paste(colour(number), (8, 16, 72, 48))
                image.save(data / "images" / f"{place:07d}.jpg", quality=100, subsampling=0)
                rows.append(f"{place:07d} {variant}")
                boxes.append(f"{place:07d} 9 17 72 48")
        text(data / f"images_variant_{part}.txt", rows)
    text(data / "images_box.txt", boxes)
    return data.parent


def write_caltech101(root: Path) -> Path:
    folder = root / "caltech-101" / "101_ObjectCategories"
    for number, name in enumerate(("Faces", "accordion")):
        for image in range(34):
            picture(folder / name / f"image_{image + 1:04d}.jpg", number)
    picture(folder / "BACKGROUND_Google" / "image_0001.jpg", 9)
    return folder.parent


# --- arrays


def write_stl10(root: Path) -> Path:
    """Labels from 1; columns before rows. The left half of each image is black, to tell the axes apart."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for part, numbers in (("train", [*range(10), *range(10)]), ("test", [*range(10)]), ("unlabeled", [11, 12, 13])):
        images = np.zeros((len(numbers), 3, 96, 96), np.uint8)
        for image, number in zip(images, numbers, strict=True):
            image[:, 48:, :] = np.array(colour(number), np.uint8)[:, None, None]
        images.tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (np.array(numbers, np.uint8) + 1).tofile(folder / f"{part}_y.bin")
    text(folder / "class_names.txt", [f"kind{number}" for number in range(10)])
    return folder


def write_svhn(root: Path) -> Path:
    """The digit 0 has label 10; images lie along the last axis."""
    from scipy.io import savemat

    folder = root / "svhn"
    folder.mkdir(parents=True)
    for part, count in (("train", 3), ("test", 1)):
        digits = np.repeat(np.arange(10), count)
        images = np.array([colour(int(digit)) for digit in digits], np.uint8)
        stored = np.broadcast_to(images.T[None, None], (32, 32, 3, len(digits)))
        label = np.where(digits == 0, 10, digits)[:, None].astype(np.uint8)
        savemat(folder / f"{part}_32x32.mat", {"X": stored, "y": label}, do_compression=True)
    return folder


def bands(number: int) -> NDArray[np.uint16]:
    """A 13-band image of a class, uint16 ``(13, 64, 64)``: band b is 1000 b + 7 class, plus its row."""
    band, row = np.arange(13)[:, None, None], np.arange(64)[None, :, None]
    return np.broadcast_to(1000 * band + 7 * number + row, (13, 64, 64)).astype(np.uint16)


def write_tiff(path: Path, image: NDArray[np.uint16], *, planar: bool = False, order: str = "<") -> None:
    """An uncompressed 16-bit TIFF of many bands, in strips of 16 rows, as GDAL writes them."""
    count, height, width = image.shape
    pieces = [image[band : band + 1] for band in range(count)] if planar else [image]
    strips = [
        np.ascontiguousarray(piece[:, row : row + 16].transpose(1, 2, 0)).astype(f"{order}u2").tobytes()
        for piece in pieces
        for row in range(0, height, 16)
    ]
    tags: list[tuple[int, int, list[int]]] = [
        (256, 3, [width]), (257, 3, [height]), (258, 3, [16] * count), (259, 3, [1]), (262, 3, [1]),
        (273, 4, [0] * len(strips)), (277, 3, [count]), (278, 3, [16]),
        (279, 4, [len(strip) for strip in strips]), (284, 3, [2 if planar else 1]),
    ]  # fmt: skip
    beyond = 8 + 2 + 12 * len(tags) + 4  # the offset of values that do not fit into their entry
    sizes = {tag: len(values) * (2 if kind == 3 else 4) for tag, kind, values in tags}
    start = beyond + sum(size for size in sizes.values() if size > 4)
    tags[5] = (273, 4, [start + sum(len(strip) for strip in strips[:place]) for place in range(len(strips))])
    entries, values_beyond = b"", b""
    for tag, kind, values in tags:
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, values_beyond = struct.pack(f"{order}I", beyond + len(values_beyond)), values_beyond + packed
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        head + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4 + values_beyond + b"".join(strips)
    )


def write_eurosat(root: Path, *, multispectral: bool = False) -> Path:
    """Ten images of each of two classes; the lists name JPEG files in both forms, as upstream's do."""
    folder = root / ("EuroSAT_MS" if multispectral else "EuroSAT_RGB")
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, name in enumerate(("AnnualCrop", "Forest")):
        for image in range(1, 11):
            parts["train" if image <= 6 else "val" if image <= 8 else "test"].append(f"{name}_{image}.jpg")
            if multispectral:
                write_tiff(folder / name / f"{name}_{image}.tif", bands(number))
            else:
                picture(folder / name / f"{name}_{image}.jpg", number, (64, 64))
    for part, files in parts.items():
        text(folder / f"eurosat-{part}.txt", files)
    return folder


# --- medical


def write_chexpert(root: Path, *, patients: int = 12) -> Path:
    """Two views of each patient. Blank, 0 and -1 are no finding; an image is coloured by its number of findings."""
    folder = root / "CheXpert-v1.0-small"
    findings = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
    cells = (["1.0", "", "-1.0", "0.0", "1.0"], ["", "", "", "1.0", ""], ["0.0", "1.0", "1.0", "1.0", "1.0"])
    for part, numbers in (("train", range(patients)), ("valid", range(patients, patients + 3))):
        rows = []
        for patient in numbers:
            observed = cells[patient % 3]
            for view in ("view1_frontal", "view2_lateral"):
                file = f"{part}/patient{patient:05d}/study1/{view}.jpg"
                picture(folder / file, observed.count("1.0"))
                rows.append([f"{folder.name}/{file}", "Female", "60", "Frontal", "AP", *observed])
        table(folder / f"{part}.csv", ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *findings], rows)
    return folder


def write_xray8(root: Path, *, patients: int = 20) -> Path:
    """Two images of each patient; the last four patients are the test list's."""
    folder = root / "xray8"
    findings = ("No Finding", "Cardiomegaly|Effusion", "Pneumothorax|Hernia|Mass")
    rows, names = [], []
    for patient in range(1, patients + 1):
        for number in range(2):
            name = f"{patient:08d}_{number:03d}.png"
            picture(folder / "images" / name, patient % 3)
            rows.append([name, findings[patient % 3], str(number), str(patient)])
            names.append(name)
    table(folder / "Data_Entry_2017_v2020.csv", ["Image Index", "Finding Labels", "Follow-up #", "Patient ID"], rows)
    text(folder / "train_val_list.txt", names[:-8])
    text(folder / "test_list.txt", names[-8:])
    return folder


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


# --- captioned


def write_vqa(root: Path) -> Path:
    """VQA v1, multiple choice: three questions an image; one question's answer is not among its choices."""
    folder = root / "coco-vqa"
    for part, count in (("train2014", 24), ("val2014", 6)):
        images, annotations, questions = [], [], []
        for image in range(count):
            name = f"COCO_{part}_{image:012d}.jpg"
            picture(folder / part / name, image % 10, (60, 80))
            images.append({"id": image, "file_name": name})
            for number in range(3):
                question: Mapping[str, Any] = {"question_id": 10 * image + number, "image_id": image}
                questions.append(
                    {**question, "question": f"what is it {number}", "multiple_choices": ["dog", "cat", "bus"]}
                )
                answer = "whale" if image == number == 0 else "dog"
                annotations.append({**question, "multiple_choice_answer": answer})
        contents = {
            f"annotations/captions_{part}.json": {"images": images, "annotations": []},
            f"mscoco_{part}_annotations.json": {"annotations": annotations[::-1]},
            f"MultipleChoice_mscoco_{part}_questions.json": {"questions": questions},
        }
        for file, content in contents.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_words(root: Path) -> None:
    """BERT's vocabulary, of the few words that the questions and answers of `write_vqa` have."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", *"012", "dog", "cat", "bus", "whale"]
    text(root / "bert-base-uncased" / "vocab.txt", words)
