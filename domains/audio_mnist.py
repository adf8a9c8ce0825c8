"""AudioMNIST (Becker et al. 2018): ten digits, 50 times each by 60 speakers, 48 kHz. Split by speaker."""

import re
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.modalities.spectrogram import LARGE, Clips, sized_domains, small, sounds

NAME = re.compile(r"\d\d/(\d)_(\d\d)_\d+\.wav")
# the speakers of the validation and of the test part: the first split of the set's authors, which DABS uses
VALIDATION = (12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50)
TEST = (26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51)


def _read(folder: Path, protocol: str) -> Clips:
    files = sounds(folder / "data")
    parts = [NAME.fullmatch(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part is None:
            raise UserError(f"{folder / 'data' / file}: not speaker/digit_speaker_index.wav; remove or rename it")
    speaker = np.array([int(part[2]) for part in parts if part], np.int64)
    return Clips(
        folder=folder,
        files=[f"data/{file}" for file in files],
        train=np.flatnonzero(~np.isin(speaker, VALIDATION + TEST)),
        validation=np.flatnonzero(np.isin(speaker, VALIDATION)),
        test=np.flatnonzero(np.isin(speaker, TEST)),
        label=np.array([int(part[1]) for part in parts if part], np.int64),
        task=Task("classes", "accuracy", tuple("0123456789")),
        group=speaker,
    )


DOMAINS = sized_domains(
    "audio_mnist",
    _read,
    title="AudioMNIST, spoken digits (Becker et al., 2018)",
    licence="MIT",
    folder="AudioMNIST",
    needs=("data/*/*.wav",),
    sizes="18,000 / 6,000",
    forms=(small(16_000), LARGE),
    dabs=(-90.293, 11.799),
    manual="git clone https://github.com/soerenab/AudioMNIST into the data root",
)
