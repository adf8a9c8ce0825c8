"""Fluent Speech Commands (Lugosch et al. 2019): spoken orders to a house; which action, on what, and where."""

import csv
from functools import partial
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes
from dabsmix.modalities.spectrogram import Clips, sized_domains

CLASSES = {  # in DABS's order
    "action": ("change language", "activate", "deactivate", "increase", "decrease", "bring"),
    "object": (
        *("none", "music", "lights", "volume", "heat", "lamp", "newspaper", "juice", "socks", "shoes"),
        *("Chinese", "Korean", "English", "German"),
    ),
    "location": ("none", "kitchen", "bedroom", "washroom"),
}
PARTS = ("train", "valid", "test")


def _read(target: str, folder: Path, protocol: str) -> Clips:
    classes = CLASSES[target]
    files: list[str] = []
    label: list[int] = []
    speaker: list[str] = []
    part: list[int] = []
    for number, name in enumerate(PARTS):
        table = folder / "data" / f"{name}_data.csv"
        try:
            with table.open(encoding="utf-8", newline="") as stream:
                reader = csv.DictReader(stream, restkey="beyond", restval=None)
                missing = {"path", "speakerId", target} - set(reader.fieldnames or ())
                if missing:
                    raise UserError(f"{table}:1: no column {min(missing)!r}; fetch the file again")
                for row in reader:
                    if "beyond" in row or None in row.values():
                        raise UserError(f"{table}:{reader.line_num}: not as many cells as the header; fix the row")
                    if row[target] not in classes:
                        raise UserError(f"{table}:{reader.line_num}: {target} {row[target]!r} is not a known one")
                    files.append(row["path"])
                    label.append(classes.index(row[target]))
                    speaker.append(row["speakerId"])
                    part.append(number)
        except FileNotFoundError as error:
            raise UserError(f"{table}: no such file; is the set complete?") from error
    which = np.array(part)
    return Clips(
        folder=folder,
        files=files,
        train=np.flatnonzero(which == 0),
        validation=np.flatnonzero(which == 1),
        test=np.flatnonzero(which == 2),
        label=np.array(label, np.int64),
        task=Task("classes", "accuracy", classes),
        group=codes(speaker),
        lists=tuple(f"data/{name}_data.csv" for name in PARTS),
    )


DOMAINS = tuple(
    domain
    for target in CLASSES
    for domain in sized_domains(
        f"fluent_speech_{target}",
        partial(_read, target),
        title=f"Fluent Speech Commands, {target} (Lugosch et al., 2019)",
        licence="Fluent Speech Commands Public License, research only",
        folder="fluent_speech_commands_dataset",
        needs=(*(f"data/{name}_data.csv" for name in PARTS), "wavs/*/*/*.wav"),
        sizes="23,132 / 3,793",
        dabs=(-31.809, 13.127),
        manual="register with fluent.ai for fluent_speech_commands_dataset.zip and unpack it in the data root",
    )
)
