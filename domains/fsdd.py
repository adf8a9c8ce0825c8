"""Free Spoken Digit Dataset (Jackson et al.): ten digits by a few speakers, 8 kHz, cut to the word."""

import re
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.modalities.spectrogram import LARGE, Clips, sized_domains, small, sounds

NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")
TEST = 5
"""Recordings 0 to 4 of every digit and speaker are the test part, as the set's README states."""


def _read(folder: Path, protocol: str) -> Clips:
    files = sounds(folder / "recordings")
    parts = [NAME.fullmatch(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part is None:
            raise UserError(f"{folder / 'recordings' / file}: not named digit_speaker_index.wav; remove or rename it")
    index = np.array([int(part[3]) for part in parts if part], np.int64)
    return Clips(
        folder=folder,
        files=[f"recordings/{file}" for file in files],
        train=np.flatnonzero(index >= TEST),
        test=np.flatnonzero(index < TEST),
        label=np.array([int(part[1]) for part in parts if part], np.int64),
        task=Task("classes", "accuracy", tuple("0123456789")),
        notes=("Every speaker is in train and in test: the score says nothing about speakers not heard before.",),
    )


DOMAINS = sized_domains(
    "fsdd",
    _read,
    title="Free Spoken Digit Dataset",
    licence="CC BY-SA 4.0",
    folder="free-spoken-digit-dataset",
    needs=("recordings/*.wav",),
    sizes="2,700 / 300",
    forms=(small(8_000), LARGE),
    manual="git clone https://github.com/Jakobovski/free-spoken-digit-dataset into the data root",
)
