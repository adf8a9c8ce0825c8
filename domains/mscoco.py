"""MS COCO 2017 (Lin et al., 2014): 123,000 photographs of everyday scenes, each with five captions and its objects."""

from pathlib import Path
from typing import Any

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.modalities.captioned import Examples, extracted, sized_domains

PARTS = ("train2017", "val2017")


def captioned(folder: Path, protocol: str) -> tuple[list[dict[str, Any]], list[str], list[int], list[str]]:
    """The images that have captions and objects: entries, categories, images per part, tables.

    An entry has ``file``, ``caption`` and ``categories``. Under ``dabs`` entries stand in the order of the captions'
    file, whose last caption and last object of an image count; else in the order of image ids, with the first caption
    by id and all its categories.
    """
    entries: list[dict[str, Any]] = []
    names: list[str] = []
    counts, tables = [], []
    for part in PARTS:
        pair = [f"annotations/captions_{part}.json", f"annotations/instances_{part}.json"]
        content = extracted("mscoco", folder, pair, _extract)
        names = content["categories"]
        images = (
            content["images"] if protocol == "dabs" else sorted(content["images"], key=lambda image: int(image["id"]))
        )
        which = "last" if protocol == "dabs" else "all"
        entries += [
            {"file": f"{part}/{image['file']}", "caption": image[f"{which}_caption"], "categories": image[which]}
            for image in images
        ]
        counts.append(len(images))
        tables += pair
    return entries, names, counts, tables


def _extract(captions: Any, instances: Any) -> dict[str, Any]:
    order = sorted(instances["categories"], key=lambda category: int(category["id"]))
    number = {category["id"]: place for place, category in enumerate(order)}
    file = {image["id"]: image["file_name"] for image in captions["images"]}
    captions_of: dict[int, list[dict[str, Any]]] = {}
    for caption in captions["annotations"]:
        captions_of.setdefault(caption["image_id"], []).append(caption)
    categories_of: dict[int, list[int]] = {}
    for annotation in instances["annotations"]:
        categories_of.setdefault(annotation["image_id"], []).append(number[annotation["category_id"]])
    return {
        "categories": [category["name"] for category in order],
        "images": [
            {
                "id": image,
                "file": file[image],
                "last_caption": texts[-1]["caption"],
                "all_caption": min(texts, key=lambda text: int(text["id"]))["caption"],
                "last": categories_of[image][-1:],
                "all": sorted(set(categories_of[image])),
            }
            for image, texts in captions_of.items()
            if image in categories_of
        ],
    }


def _read(folder: Path, protocol: str) -> Examples:
    """Which of 80 categories an image shows; under ``dabs`` the category of the last object in the file."""
    entries, names, (first, _), tables = captioned(folder, protocol)
    count = len(entries)
    train, validation, test = np.arange(first), np.arange(first, count), np.arange(first, count)
    if protocol == "dabs":
        label = np.array([entry["categories"][0] for entry in entries], dtype=np.int64)
        task = Task("classes", "accuracy", tuple(names))
        absent = len(names) - len(np.unique(label[:first]))
        notes = (f"{absent} of the {len(names)} categories are the label of no training image.",) if absent else ()
    else:
        train_rows, validation_rows = carve(first)
        train, validation = train[train_rows], train[validation_rows]
        label = np.zeros((count, len(names)), dtype=np.uint8)
        for row, entry in enumerate(entries):
            label[row, entry["categories"]] = 1
        task = Task("multilabel", "auroc_macro", tuple(names))
        absent = int((label[train].sum(axis=0) == 0).sum())
        notes = (f"{absent} of the {len(names)} categories are on no training image.",) if absent else ()
    return Examples(
        files=[entry["file"] for entry in entries],
        tables=tables,
        image=np.arange(count),
        texts=[entry["caption"] for entry in entries],
        label=label,
        train=train,
        validation=validation,
        test=test,
        task=task,
        notes=(*notes, *folder_note(folder)),
    )


def folder_note(folder: Path) -> tuple[str, ...]:
    """A note that names the folder, if it is not that of the whole set."""
    return () if folder.name == FOLDER else (f"Read from the folder {folder.name}, as {FOLDER} is missing.",)


FOLDER = "coco"
STAND_INS = ("mscoco", "coco-mini")
DOWNLOADS = (
    Download(("http://images.cocodataset.org/zips/train2017.zip",), f"{FOLDER}/train2017.zip"),
    Download(("http://images.cocodataset.org/zips/val2017.zip",), f"{FOLDER}/val2017.zip"),
    Download(
        ("http://images.cocodataset.org/annotations/annotations_trainval2017.zip",),
        f"{FOLDER}/annotations_trainval2017.zip",
    ),
)

NEEDS = tuple(
    name
    for part in PARTS
    for name in (f"annotations/captions_{part}.json", f"annotations/instances_{part}.json", f"{part}/*.jpg")
)

DOMAINS = sized_domains(
    "mscoco",
    _read,
    title="MS COCO 2017, photographs with a caption (Lin et al., 2014)",
    folder=FOLDER,
    sizes="118,287 / 5,000",
    stand_ins=STAND_INS,
    needs=NEEDS,
    downloads=DOWNLOADS,
    transfers=("mismatched_caption", "vqa"),
)
