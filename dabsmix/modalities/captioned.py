"""An image and a text as one example: COCO's pictures with a caption, or with a question and its answer.

Images are in one store and texts in another; several examples may share an image. As in DABS, a text is 32 tokens of
BERT's vocabulary, and a picture is squeezed to 480x640, cropped to its central square and resized.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint, prepared
from dabsmix.data.domain import Data, Domain, Labelled, Rows, Split, Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import digest
from dabsmix.modalities.image import Listing, load, opened, resized
from dabsmix.modalities.text import BERT, BERT_FILE, Sample, tokenizer, write_rows
from dabsmix.spec import Tokens

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Examples", "extracted", "sized_domains"]

LENGTH = 32

# Part of the cache keys: raise it when the same files would give other tables or tokens.
PREPARATION = 1


@dataclass(frozen=True)
class Examples:
    """The examples of a data set, in an order that does not depend on the file system.

    Attributes:
        files: the images, relative to the folder.
        tables: the files of texts and labels, relative to the folder.
        image: int64 ``(n,)``, each example's row in `files`; examples of one image are one group.
        texts: each example's text, or pair of texts.
        label: of each example, in the form of the task's kind.
        train, validation, test: rows of the examples.
        task: what is predicted.
        notes: what a reader of a score has to know.
    """

    files: list[str]
    tables: list[str]
    image: NDArray[np.int64]
    texts: list[Sample]
    label: NDArray[Any]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    task: Task
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Shared:
    """The store of images, indexed by example: ``image[example]`` is the row in the store."""

    images: Rows
    image: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.images[self.image[rows]]


def sized_domains(
    name: str,
    read: Callable[[Path, str], Examples],
    *,
    title: str,
    folder: str,
    sizes: str,
    stand_ins: tuple[str, ...] = (),
    downloads: tuple[Download, ...],
    transfers: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
) -> tuple[Domain, ...]:
    """The domains of one data set: 32x32 in patches of 4 under its name, 224x224 in patches of 16 as ``name_224``."""
    return tuple(
        Domain(
            name=name + suffix,
            modality="image+text",
            title=f"{title}, {side}x{side} in patches of {patch} and {LENGTH} tokens",
            licence="annotations CC BY 4.0, each image under its own Flickr licence",
            folder=folder,
            stand_ins=stand_ins,
            load=partial(_load, name, read, side, patch),
            downloads=(*downloads, BERT_FILE),
            sizes=sizes,
            batch_size=64,
            transfers=tuple(target + suffix for target in transfers),
            needs=needs,
            dabs=f"{name}_224" if side < 224 else "",
        )
        for suffix, side, patch in (("", 32, 4), ("_224", 224, 16))
    )


def _load(name: str, read: Callable[[Path, str], Examples], side: int, patch: int, folder: Path, protocol: str) -> Data:
    tokens = tokenizer(BERT, folder.parent)
    examples = read(folder, protocol)
    files = sorted(examples.files)  # so that the images are stored once, whatever the order of the examples
    row_of = {file: row for row, file in enumerate(files)}
    image = np.array([row_of[file] for file in examples.files], dtype=np.int64)[examples.image]
    listing = Listing(
        folder=folder,
        files=files,
        count=len(files),
        pixels=partial(_pixels, folder, files),
        # `load` divides and standardises the images; labels and texts are added below
        label=np.zeros(len(files), np.int64),
        train=np.unique(image[examples.train]),
        validation=np.unique(image[examples.validation]),
        test=np.unique(image[examples.test]),
        task=Task("multilabel", "auroc_macro"),
    )
    pictures = load("coco", listing, side, patch, protocol, "crop")
    tables = fingerprint(folder, examples.tables)

    def build(into: Path) -> None:
        write_rows(into / "tokens.npy", tokens, LENGTH, len(examples.texts), examples.texts, name)

    ready = prepared(name, f"{tables} {tokens.digest} {protocol == 'dabs'} {PREPARATION}", build)
    stores = (
        _Shared(pictures.pretrain.inputs[0], image),
        np.asarray(np.load(ready / "tokens.npy", mmap_mode="r")),
    )

    def split(rows: NDArray[np.int64]) -> Split:
        return Split(stores, rows, examples.label[rows], image[rows])

    def normalise(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        image, text = pictures.normalise(inputs)
        return image, text.long()

    train = split(examples.train)
    return replace(
        pictures,
        specs=(*pictures.specs, Tokens(LENGTH, tokens.vocab, tokens.pad)),
        pretrain=train,
        labelled=Labelled(examples.task, train, split(examples.validation), split(examples.test)),
        fingerprint=digest([pictures.fingerprint, tables]),
        normalise=normalise,
        notes=examples.notes,
        state={"tokenizer": tokens.reference()},
    )


def _pixels(folder: Path, files: Sequence[str], row: int, side: int) -> NDArray[np.uint8]:
    from PIL.Image import Resampling

    image = opened(folder / files[row]).resize((480, 640), Resampling.BILINEAR)
    return resized(image.crop((0, 80, 480, 560)), side)


def extracted(name: str, folder: Path, tables: Sequence[str], extract: Callable[..., Any]) -> Any:
    """``extract(*contents)`` of JSON files, plain JSON values, cached: COCO's files take a quarter of a minute to read.

    Raises:
        UserError: a file is missing or damaged, or lacks a field that ``extract`` needs.
    """
    paths = [folder / table for table in tables]

    def build(into: Path) -> None:
        try:
            contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
            values = extract(*contents)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: {' or '.join(tables)} cannot be read ({error}); fetch it again") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder}: {' or '.join(tables)} lacks {error}; fetch it again") from error
        (into / "kept.json").write_text(json.dumps(values), encoding="utf-8")

    ready = prepared(f"{name}_tables", f"{fingerprint(folder, tables)} {PREPARATION}", build)
    return json.loads((ready / "kept.json").read_text(encoding="utf-8"))
