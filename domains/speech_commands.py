"""Google Speech Commands (Warden 2018): single words, 16 kHz, one second; versions 0.01 and 0.02 and a 12-class task.

Upstream splits by speaker, the part of a file's name before ``_nohash_``, with two lists. In DABS's loader the lists
keep their line ends, so that its training part holds the whole test part; here it does not, under ``dabs`` neither.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.spectrogram import LARGE, Clips, Form, duration, sized_domains, small, sounds

LISTS = ("validation_list.txt", "testing_list.txt")
NOISE = "_background_noise_"
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
TRAIN, VALIDATION, TEST = 0, 1, 2


def _read(folder: Path, protocol: str) -> Clips:
    """Every clip of a word, labelled with it; upstream's lists say to which part a clip belongs."""
    files = [file for file in sounds(folder) if not file.startswith(NOISE)]
    if not files:
        raise UserError(f"{folder}: no sound word/speaker_nohash_number.wav; fetch the data set again")
    for file in files:
        if len(PurePosixPath(file).parts) != 2 or "_nohash_" not in file:
            raise UserError(f"{folder / file}: not word/speaker_nohash_number.wav; remove or rename it")
    validation, test = (_listed(folder / name) for name in LISTS)
    part = np.array([TEST if file in test else VALIDATION if file in validation else TRAIN for file in files], np.int64)
    speaker = np.array([PurePosixPath(file).name.partition("_nohash_")[0] for file in files], np.str_)
    shared = np.intersect1d(speaker[part == TEST], speaker[part != TEST])
    if len(shared):
        raise UserError(f"{folder}: speaker {shared[0]} is in test and in train; fetch upstream's lists again")
    clips = _clips(folder, files, part, [file.partition("/")[0] for file in files], speaker)
    if protocol != "dabs":
        return clips
    note = (
        "DABS's published scores are of an encoder and a head that were trained on the test clips too, with the noise "
        "recordings as a class of their own. Here they are not, so the scores do not compare."
    )
    return replace(clips, notes=(note,))


def _read_12(folder: Path, protocol: str) -> Clips:
    """Ten commands, ``unknown`` for every other word, ``silence`` for seconds of the background noise recordings.

    i-Mix (Lee et al. 2021) has the same classes; its silence is so many copies of a clip of zeros.
    """
    words = _read(folder, protocol)
    assert words.task is not None and words.label is not None and words.group is not None  # noqa: PT018
    spoken = [word if word in COMMANDS else "unknown" for word in np.array(words.task.classes)[words.label]]
    noises = [f"{NOISE}/{file}" for file in sounds(folder / NOISE)]
    lengths = [int(duration(folder / file)) for file in noises]
    # the start of every recording is for train, its end for test: all kinds of noise are in every part
    parts = [np.searchsorted([0.8, 0.9], (np.arange(n) + 0.5) / n) for n in lengths]
    part = np.zeros(len(words.files), np.int64)
    part[words.validation], part[words.test] = VALIDATION, TEST
    clips = _clips(
        folder,
        [*words.files, *np.repeat(noises, lengths).tolist()],
        np.concatenate([part, *parts]),
        [*spoken, *["silence"] * sum(lengths)],
        # a recording's three parts are three groups
        np.concatenate([words.group, *(words.group.max() + 1 + 3 * i + p for i, p in enumerate(parts))]),
        ("unknown", "silence", *COMMANDS),
    )
    return replace(
        clips,
        begin=np.concatenate([np.zeros(len(words.files), np.int64), *(np.arange(n) for n in lengths)]),
        notes=("Silence is made of seconds of the noise recordings, early ones for train and late ones for test.",),
    )


def _listed(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8").split())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; without it test cannot be told from train") from error


def _clips(
    folder: Path,
    files: list[str],
    part: NDArray[np.int64],
    label: Sequence[str],
    group: NDArray[np.str_] | NDArray[np.int64],
    classes: tuple[str, ...] = (),
) -> Clips:
    classes = classes or tuple(sorted(set(label)))
    return Clips(
        folder=folder,
        files=files,
        train=np.flatnonzero(part == TRAIN),
        validation=np.flatnonzero(part == VALIDATION),
        test=np.flatnonzero(part == TEST),
        label=np.array([classes.index(name) for name in label], np.int64),
        task=Task("classes", "accuracy", classes),
        group=np.unique(group, return_inverse=True)[1].astype(np.int64),
        lists=LISTS,
    )


def _download(version: str, sha256: str) -> Download:
    name = f"speech_commands_{version}"
    return Download(
        (
            f"http://download.tensorflow.org/data/{name}.tar.gz",
            f"https://storage.googleapis.com/download.tensorflow.org/data/{name}.tar.gz",
        ),
        # the archive has no folder of its own
        f"{name}/{name}.tar.gz",
        f"sha256:{sha256}",
        "torchaudio 2.11.0, datasets/speechcommands.py",
    )


FIRST = (_download("v0.01", "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"),)
SECOND = (_download("v0.02", "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"),)

# i-Mix's: 32 bands by 32 frames of one second.
IMIX = Form(rate=16_000, samples=16_000, fft=2048, hop=512, mels=32, patch=4)

DOMAINS = (
    *sized_domains(
        "speech_commands",
        _read,
        title="Speech Commands 0.01, 30 words (Warden, 2018)",
        licence="CC BY 4.0",
        folder="speech_commands_v0.01",
        needs=(*LISTS, "*/*_nohash_*.wav"),
        forms=(small(16_000), LARGE),
        downloads=FIRST,
        sizes="51,094 / 6,835",
    ),
    *sized_domains(
        "speech_commands_v2",
        _read,
        title="Speech Commands 0.02, 35 words (Warden, 2018)",
        licence="CC BY 4.0",
        folder="speech_commands_v0.02",
        needs=(*LISTS, "*/*_nohash_*.wav"),
        forms=(small(16_000), LARGE),
        dabs=(-46.847, 19.151),
        aliases=("google_speech",),
        downloads=SECOND,
        sizes="84,843 / 11,005",
    ),
    *sized_domains(
        "speech_commands_12",
        _read_12,
        title="Speech Commands 0.01, ten commands, unknown and silence (Warden, 2018)",
        licence="CC BY 4.0",
        folder="speech_commands_v0.01",
        needs=(*LISTS, "*/*_nohash_*.wav", f"{NOISE}/*.wav"),
        forms=(small(16_000), IMIX),
        downloads=FIRST,
    ),
)
