"""Is this the answer? VQA v1, multiple choice, on MS COCO 2014 (Antol et al., 2015), as DABS poses it."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.modalities.captioned import Examples, extracted, sized_domains

FOLDER = "coco-vqa"
PARTS = ("train2014", "val2014")


def _read(folder: Path, protocol: str) -> Examples:
    """An image, its question and an answer, wrong for half of the questions, which DABS draws without a seed."""
    files: list[str] = []
    image: list[int] = []
    pairs: list[tuple[str, str]] = []
    label: list[int] = []
    counts, tables, dropped = [], [], 0
    for part in PARTS:
        trio = _tables(part)
        content = extracted("vqa", folder, trio, _extract)
        place = {file: len(files) + number for number, file in enumerate(content["files"])}
        files += [f"{part}/{file}" for file in content["files"]]
        rng = random.Random(42)
        for file, question, answer, choices in content["questions"]:
            wrong = [choice for choice in choices if choice != answer]
            swap = rng.random() < 0.5
            image.append(place[file])
            pairs.append((question, rng.choice(wrong) if swap else answer))
            label.append(0 if swap else 1)
        counts.append(len(content["questions"]))
        dropped += content["dropped"]
        tables += trio
    first, count = counts[0], sum(counts)
    train, validation, test = np.arange(first), np.arange(first, count), np.arange(first, count)
    rows = np.array(image, dtype=np.int64)
    if protocol != "dabs":
        train_rows, validation_rows = carve(first, group=rows[:first])
        train, validation = train[train_rows], train[validation_rows]
    return Examples(
        files=files,
        tables=tables,
        image=rows,
        texts=list(pairs),
        label=np.array(label, dtype=np.int64),
        train=train,
        validation=validation,
        test=test,
        task=Task("classes", "accuracy", ("wrong", "right")),
        notes=(f"{dropped} questions whose answer is not among their choices are left out, as in DABS.",),
    )


def _extract(captions: Any, annotations: Any, questions: Any) -> dict[str, Any]:
    """By question id: the image's file, question, answer and choices."""
    file = {image["id"]: image["file_name"] for image in captions["images"]}
    question_of = {question["question_id"]: question for question in questions["questions"]}
    answered, dropped = [], 0
    for annotation in sorted(annotations["annotations"], key=lambda annotation: int(annotation["question_id"])):
        question, answer = question_of[annotation["question_id"]], annotation["multiple_choice_answer"]
        choices = question["multiple_choices"]
        if answer in choices and len(set(choices)) > 1:
            answered.append((file[annotation["image_id"]], question["question"], answer, choices))
        else:
            dropped += 1
    return {"files": sorted({name for name, *_ in answered}), "questions": answered, "dropped": dropped}


def _tables(part: str) -> list[str]:
    return [
        f"annotations/captions_{part}.json",
        f"mscoco_{part}_annotations.json",
        f"MultipleChoice_mscoco_{part}_questions.json",
    ]


def _zip(url: str) -> Download:
    return Download((url,), f"{FOLDER}/{url.rsplit('/', 1)[1]}")


DOMAINS = sized_domains(
    "vqa",
    _read,
    title="Is this the answer? VQA v1 on MS COCO 2014 (Antol et al., 2015; DABS)",
    folder=FOLDER,
    needs=tuple(name for part in PARTS for name in (*_tables(part), f"{part}/*.jpg")),
    sizes="248,349 / 121,512",
    downloads=(
        _zip("http://images.cocodataset.org/zips/train2014.zip"),
        _zip("http://images.cocodataset.org/zips/val2014.zip"),
        _zip("http://images.cocodataset.org/annotations/annotations_trainval2014.zip"),
        *(
            _zip(f"https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/{kind}_{part}_mscoco.zip")
            for part in ("Train", "Val")
            for kind in ("Annotations", "Questions")
        ),
    ),
)
