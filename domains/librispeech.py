"""LibriSpeech (Panayotov et al. 2015): read books, 16 kHz. Pretraining on the training sets; speakers of dev-clean."""

import re
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.spectrogram import Clips, sized_domains, sounds

NAME = re.compile(r"(\d+)/(\d+)/\1-\2-(\d+)\.flac")
TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")
SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}


def _utterances(folder: Path, part: str) -> tuple[list[str], list[str]]:
    """Files of one part in the order of their names, as torchaudio has them, and their speakers."""
    files = sorted(sounds(folder / part), key=lambda file: file.rpartition("/")[2])
    matches = [NAME.fullmatch(file) for file in files]
    for file, match in zip(files, matches, strict=True):
        if match is None:
            raise UserError(f"{folder / part / file}: not speaker/chapter/speaker-chapter-number.flac; remove it")
    return [f"{part}/{file}" for file in files], [match[1] for match in matches if match]


def _read(part: Path, protocol: str) -> Clips:
    """All training parts in the folder of this one."""
    folder = part.parent
    present = [part for part in TRAIN if (folder / part).is_dir()]
    absent = [part for part in TRAIN if part not in present]
    if not present:
        raise UserError(f"{folder}: none of {', '.join(TRAIN)} is there; fetch one of them from openslr.org/12")
    files = [file for part in present for file in _utterances(folder, part)[0]]
    return Clips(
        folder=folder,
        files=files,
        train=np.arange(len(files)),
        test=np.arange(0),
        notes=(f"Without {' and '.join(absent)}, which is not there.",) if absent else (),
    )


def _read_transfer(part: Path, protocol: str) -> Clips:
    """Four fifths of every speaker's utterances are for training: DABS's draw, from numpy's old generator."""
    folder = part.parent
    files, names = _utterances(folder, part.name)
    speaker = np.array([int(name) for name in names], np.int64)
    classes, label = np.unique(speaker, return_inverse=True)
    draw = np.random.RandomState(42)
    train: list[int] = []
    test: list[int] = []
    for number in classes:
        rows = np.flatnonzero(speaker == number)
        draw.shuffle(rows)
        train += rows[: int(0.8 * len(rows))].tolist()
        test += rows[int(0.8 * len(rows)) :].tolist()
    return Clips(
        folder=folder,
        files=files,
        train=np.sort(train),
        test=np.sort(test),
        label=label.astype(np.int64),
        task=Task("classes", "accuracy", tuple(map(str, classes))),
        notes=(
            "Utterances of one chapter are in train and in test: part of the score is the recording, not the voice.",
        ),
    )


def _download(part: str) -> Download:
    return Download(
        (f"https://www.openslr.org/resources/12/{part}.tar.gz", f"http://www.openslr.org/resources/12/{part}.tar.gz"),
        f"{part}.tar.gz",
        f"sha256:{SHA256[part]}",
        "torchaudio 2.11.0, datasets/librispeech.py",
    )


TRANSFERS = (
    *("librispeech_transfer", "audio_mnist_224", "speech_commands_v2_224", "voxceleb1"),
    *("fluent_speech_action", "fluent_speech_object", "fluent_speech_location"),
)

DOMAINS = (
    *sized_domains(
        "librispeech",
        _read,
        title="LibriSpeech, 960 hours of read books (Panayotov et al., 2015)",
        licence="CC BY 4.0",
        # the parts are separate downloads, and one of them is enough
        folder=f"LibriSpeech/{TRAIN[0]}",
        stand_ins=tuple(f"LibriSpeech/{part}" for part in TRAIN[1:]),
        needs=("*/*/*.flac",),
        dabs=(-22.924, 12.587),
        downloads=tuple(_download(part) for part in TRAIN),
        sizes="281,241 / -",
        transfers=TRANSFERS,
    ),
    *sized_domains(
        "librispeech_transfer",
        _read_transfer,
        title="LibriSpeech dev-clean, which of 40 speakers (Panayotov et al., 2015)",
        licence="CC BY 4.0",
        folder="LibriSpeech/dev-clean",
        needs=("*/*/*.flac",),
        dabs=(-22.924, 12.587),
        downloads=(_download("dev-clean"),),
    ),
)
