"""VoxCeleb1 (Nagrani et al. 2017): who of 1251 people speaks, from interviews; upstream's split by video."""

from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes
from dabsmix.modalities.spectrogram import Clips, sized_domains
from dabsmix.modalities.text import read_lines

SPLIT = "iden_split.txt"


def _read(folder: Path, protocol: str) -> Clips:
    files: list[str] = []
    part: list[str] = []
    for number, line in read_lines(folder / SPLIT):
        which, _, file = line.strip().partition(" ")
        if which not in ("1", "2", "3") or file.count("/") != 2:
            raise UserError(f"{folder / SPLIT}:{number}: {line!r} is not '1, 2 or 3' and 'speaker/video/clip.wav'")
        files.append(file)
        part.append(which)
    speaker = [file.partition("/")[0] for file in files]
    video = [file.rpartition("/")[0] for file in files]
    classes, label = np.unique(speaker, return_inverse=True)
    parts = np.array(part)
    return Clips(
        folder=folder,
        files=[f"wav/{file}" for file in files],
        train=np.flatnonzero(parts == "1"),
        validation=np.flatnonzero(parts == "2"),
        test=np.flatnonzero(parts == "3"),
        label=label.astype(np.int64),
        task=Task("classes", "accuracy", tuple(classes.tolist())),
        group=codes(video),
        lists=(SPLIT,),
    )


DOMAINS = sized_domains(
    "voxceleb1",
    _read,
    title="VoxCeleb1, which of 1251 speakers (Nagrani et al., 2017)",
    licence="CC BY 4.0",
    folder="voxceleb1",
    needs=(SPLIT, "wav/*/*/*.wav"),
    sizes="138,361 / 8,251",
    dabs=(-37.075, 19.776),
    manual="register at https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html, unpack the wav/ folder and put "
    "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt beside it",
)
