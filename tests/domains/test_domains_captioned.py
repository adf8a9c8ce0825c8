"""Images with texts: COCO with captions from real files, VQA from generated files."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import upstream_image as upstream
from PIL import Image

from dabsmix.data.domain import Data, Split
from dabsmix.domains.mismatched_caption import exchanged
from dabsmix.errors import UserError
from dabsmix.modalities.text import BERT, Tokenizer, tokenizer
from dabsmix.registry import domain
from dabsmix.source import ensure
from dabsmix.spec import Grid, Tokens


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def data_root() -> Path:
    root = Path(os.environ.get("DABSMIX_DATA", "nowhere"))
    if not (root / "coco-mini").exists() or not (root / BERT).exists():
        pytest.skip("no real COCO images or no BERT vocabulary: $DABSMIX_DATA does not have them")
    return root


def load(name: str, protocol: str) -> Data:
    card = domain(name)
    return card.load(ensure(card, data_root()), protocol)


def coco(part: str, kind: str) -> Any:
    return json.loads((data_root() / "coco-mini/annotations" / f"{kind}_{part}2017.json").read_text())


def texts(split: Split | None, tokens: Tokenizer) -> list[list[int]]:
    """Ids of each example, padding left out."""
    assert split is not None
    ids = np.asarray(split.inputs[1][split.rows])
    return [row[row != tokens.pad].tolist() for row in ids]


def ids(tokens: Tokenizer, captions: list[str]) -> list[list[int]]:
    return [row[row != tokens.pad].tolist() for row in tokens.encode(captions, 32)]


def test_an_example_is_an_image_and_a_text() -> None:
    data = load("mscoco", "v1")
    assert data.specs == (Grid(3, (32, 32), (4, 4)), Tokens(32, 30522, 0))
    image, text = data.normalise(data.pretrain.batch(np.arange(4)))
    assert (image.shape, image.dtype) == ((4, 3, 32, 32), torch.float32)
    assert (text.shape, text.dtype) == ((4, 32), torch.int64)
    assert (text[:, 0] == 101).all(), "[CLS]"
    assert any("coco-mini" in note for note in data.notes)
    assert data.augment is not None
    augmented, same = data.augment((image, text), torch.Generator().manual_seed(0))
    assert not torch.equal(augmented, image)
    assert same is text


def test_mscoco_under_dabs_takes_the_last_caption_and_object() -> None:
    """Against DABS's dictionaries, which later entries overwrite."""
    data, tokens = load("mscoco", "dabs"), tokenizer(BERT, data_root())
    captions = {annotation["image_id"]: annotation["caption"] for annotation in coco("val", "captions")["annotations"]}
    instances = coco("val", "instances")
    number = {category["id"]: place for place, category in enumerate(instances["categories"])}
    label = {annotation["image_id"]: number[annotation["category_id"]] for annotation in instances["annotations"]}
    order = [image for image in captions if image in label]
    labelled = data.require_labelled()
    assert labelled.test.label is not None
    assert labelled.test.label.tolist() == [label[image] for image in order]
    assert texts(labelled.test, tokens) == ids(tokens, [captions[image] for image in order])
    assert (len(labelled.train), labelled.validation.rows.tolist()) == (40, labelled.test.rows.tolist())


def test_mscoco_under_v1_labels_every_category_on_an_image() -> None:
    data, tokens = load("mscoco", "v1"), tokenizer(BERT, data_root())
    captions: dict[int, dict[int, str]] = {}
    for annotation in coco("val", "captions")["annotations"]:
        captions.setdefault(annotation["image_id"], {})[annotation["id"]] = annotation["caption"]
    instances = coco("val", "instances")
    names = {category["id"]: category["name"] for category in instances["categories"]}
    shown: dict[int, set[str]] = {}
    for annotation in instances["annotations"]:
        shown.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    order = sorted(shown.keys() & captions.keys())
    labelled = data.require_labelled()
    assert labelled.test.label is not None
    for row, image in enumerate(order):
        assert {labelled.task.classes[place] for place in np.flatnonzero(labelled.test.label[row])} == shown[image]
    assert texts(labelled.test, tokens) == ids(tokens, [captions[image][min(captions[image])] for image in order])
    assert not set(labelled.train.rows.tolist()) & set(labelled.validation.rows.tolist())


def test_a_picture_is_squeezed_and_cut_as_dabs_does() -> None:
    from torchvision import transforms

    data = load("mscoco_224", "dabs")
    captions = coco("val", "captions")
    first = next(iter({annotation["image_id"]: None for annotation in captions["annotations"]}))
    steps = transforms.Compose(
        [
            transforms.Resize((640, 480)),
            transforms.CenterCrop((480, 480)),
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
        ]
    )
    with Image.open(data_root() / "coco-mini/val2017" / f"{first:012d}.jpg") as image:
        expected = steps(image.convert("RGB"))
    picture, _ = data.normalise(data.require_labelled().test.batch(np.arange(1)))
    assert torch.equal(picture[0], expected)


# --- exchanged captions


def test_captions_are_exchanged_as_dabs_does() -> None:
    """Against the loop of the reference, on the same seed."""
    count = 57
    rng = random.Random(42)
    chosen = [row for row in range(count) if rng.random() < 0.5]
    roll = rng.randint(1, len(chosen))
    assert roll < len(chosen)
    expected = list(range(count))
    for place, source in zip(chosen, chosen[roll:] + chosen[:roll], strict=True):
        expected[place] = source
    whose, label = exchanged(count)
    assert whose.tolist() == expected
    assert label.tolist() == [int(row not in chosen) for row in range(count)]


@pytest.mark.parametrize("count", [4, 5, 6, 7, 8, 9, 10, 30, 100])
def test_an_exchanged_caption_is_never_the_image_s_own(count: int) -> None:
    source, label = exchanged(count)
    assert ((source == np.arange(count)) == (label == 1)).all()
    assert sorted(source) == list(range(count))


def test_no_split_has_a_caption_of_another_split() -> None:
    for protocol in ("v1", "dabs"):
        plain, mixed = load("mscoco", protocol), load("mismatched_caption", protocol)
        tokens = tokenizer(BERT, data_root())
        for part in ("train", "validation", "test"):
            one, other = plain.require_labelled().splits[part], mixed.require_labelled().splits[part]
            assert sorted(texts(one, tokens)) == sorted(texts(other, tokens))
            assert np.array_equal(one.inputs[0][one.rows], other.inputs[0][other.rows])
            same = [first == second for first, second in zip(texts(one, tokens), texts(other, tokens), strict=True)]
            assert other.label is not None
            assert same == (other.label == 1).tolist()


def test_too_few_images_to_exchange_is_an_error() -> None:
    with pytest.raises(UserError, match="too few"):
        exchanged(2)


# --- VQA


def test_vqa_pairs_a_question_with_an_answer(tmp_path: Path) -> None:
    folder = upstream.write_vqa(tmp_path)
    upstream.write_words(tmp_path)
    tokens = tokenizer(BERT, tmp_path)
    data = domain("vqa").load(folder, "dabs")
    labelled = data.require_labelled()
    assert labelled.train.label is not None
    assert (len(labelled.train), len(labelled.test)) == (71, 17), "one question of each part has no right choice"
    assert any(note.startswith("2 questions") for note in data.notes)
    rights = {tuple(row) for row in tokens.encode([(f"what is it {n}", "dog") for n in range(3)], 32).tolist()}
    rows = np.asarray(labelled.train.inputs[1][labelled.train.rows])
    assert [tuple(row) in rights for row in rows.tolist()] == (labelled.train.label == 1).tolist()
    assert 20 < labelled.train.label.sum() < 51
    red = np.asarray(labelled.train.inputs[0][labelled.train.rows])[:, 0, 16, 16]
    image = np.repeat(np.arange(24), 3)[1:]  # ordered by question; the first question is left out
    assert np.abs(red - (20.0 + 10 * (image % 10))).max() <= 2


def test_vqa_keeps_the_questions_of_an_image_together(tmp_path: Path) -> None:
    folder = upstream.write_vqa(tmp_path)
    upstream.write_words(tmp_path)
    data = domain("vqa").load(folder, "v1")
    parts = data.require_labelled().splits.values()
    groups = [set(split.group.tolist()) for split in parts if split.group is not None]
    assert len(groups) == 3
    assert sum(map(len, groups)) == len(set.union(*groups)) == 30
    reloaded = domain("vqa").load(folder, "v1")
    assert np.array_equal(reloaded.pretrain.label, data.pretrain.label)  # type: ignore[arg-type]  # it has labels


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"MultipleChoice_mscoco_val2014_questions\.json: .*"),
        (lambda path: path.write_text('{"questions": ['), r"MultipleChoice_mscoco_val2014_questions\.json cannot be"),
        (lambda path: path.write_text('{"images": []}'), r"questions\.json lacks 'questions'"),
        (lambda path: path.write_text("[]"), r"questions\.json lacks"),
    ],
)
def test_a_damaged_table_is_named(spoil: Any, message: str, tmp_path: Path) -> None:
    folder = upstream.write_vqa(tmp_path)
    upstream.write_words(tmp_path)
    spoil(folder / "MultipleChoice_mscoco_val2014_questions.json")
    with pytest.raises(UserError, match=message) as error:
        domain("vqa").load(folder, "v1")
    assert "\n" not in str(error.value)


def test_generated_files_replace_a_missing_set(tmp_path: Path) -> None:
    card = domain("mscoco")
    assert card.present(tmp_path) is None
    (tmp_path / "coco-mini").mkdir()
    assert ensure(card, tmp_path) == tmp_path / "coco-mini"
    (tmp_path / "coco").mkdir()
    assert ensure(card, tmp_path) == tmp_path / "coco"
