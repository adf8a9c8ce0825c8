"""PAWS-X (Yang et al. 2019): do two sentences with nearly the same words say the same? Seven languages.

The sentences of all languages but English are translated from it by machine in train and by people in dev and test.
"""

from functools import partial
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Data, Domain, Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.text import (
    HUGGING_FACE,
    XLM_ROBERTA,
    XLM_ROBERTA_FILE,
    Sample,
    Texts,
    identity,
    labelled,
    read_tsv,
    tokenizer,
)

LANGUAGES = {
    **{"en": "English", "fr": "French", "es": "Spanish", "de": "German"},
    **{"zh": "Chinese", "ja": "Japanese", "ko": "Korean"},
}
CODES = {"0": 0, "1": 1}


def _train(language: str) -> str:
    return "train.tsv" if language == "en" else "translated_train.tsv"


def load(language: str, folder: Path, protocol: str) -> Data:
    """One language. Under ``dabs`` its dev file is the test part, as DABS has it; else its test file."""
    tokens = tokenizer(XLM_ROBERTA, folder.parents[1])
    files = {
        "train": folder / _train(language),
        "test": folder / ("dev_2k.tsv" if protocol == "dabs" else "test_2k.tsv"),
    }

    def read(part: str) -> Texts:
        samples: list[Sample] = []
        label: list[int] = []
        for number, (first, second, value) in read_tsv(files[part], ["sentence1", "sentence2", "label"]):
            if value not in CODES or not (first or second):
                raise UserError(
                    f"{files[part]}:{number}: no text, or a label that is not 0 or 1; fix or remove the row"
                )
            samples.append((first, second))
            label.append(CODES[value])
        return Texts(samples, np.array(label, np.int64))

    task = Task("classes", "accuracy", ("different", "paraphrase"))
    source = identity(folder, files.values(), tokens)
    return labelled(f"paws_{language}", source, tokens, read, task, protocol)


DOMAINS = tuple(
    Domain(
        name=f"paws_{language}",
        modality="text",
        title=f"PAWS-X, paraphrase or not in {name} (Yang et al., 2019)",
        licence="free for any purpose, with acknowledgement of Google LLC",
        folder=f"x-final/{language}",
        needs=(_train(language), "test_2k.tsv"),
        load=partial(load, language),
        downloads=(
            Download(
                ("https://storage.googleapis.com/paws/pawsx/x-final.tar.gz",),
                "x-final.tar.gz",
                "sha256:4146db499101d66e68ae4c8ed3cf9dadecd625f44b7d8cf3d4a0fe93afc4fd9f",
                HUGGING_FACE.format("paws-x"),
            ),
            XLM_ROBERTA_FILE,
        ),
        sizes="49,401 / 2,000",
        batch_size=128,
    )
    for language, name in LANGUAGES.items()
)
