"""Sound: clips to log-mel spectrograms, computed once in batches and kept as a float16 memory map.

A file in ``domains/`` lists its clips (`Clips`); everything else is here. Sets of single words come small (64 mel bands
by 64 frames of about a second, in patches of 8) under their plain name and as ``name_224``; sets of sentences have the
large size alone. The large size is that of DABS (Tamkin et al. 2021): 224 by 224 in patches of 16, over 9.4 seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dabsmix.domain import Data, Domain, Split, Task
from dabsmix.download import Download
from dabsmix.errors import UserError
from dabsmix.prepare import allocate, fingerprint, prepared, progress
from dabsmix.spec import Grid
from dabsmix.splits import carve

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LARGE",
    "Clips",
    "Form",
    "Standardise",
    "duration",
    "family",
    "load",
    "log_mel",
    "read_clip",
    "small",
    "sounds",
    "stored",
]

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav")

# Part of the cache key: raise it when the same clips would give other spectrograms.
PREPARATION = 1

BATCH = 32
"""Clips that are transformed at once: bounds the memory."""


@dataclass(frozen=True)
class Form:
    """What a spectrogram looks like.

    Attributes:
        rate: Hz; clips are resampled to it.
        samples: of the window; longer clips lose their end, shorter ones are followed by silence.
        fft, hop: samples of one analysis window (Hann) and from one to the next.
        mels: mel bands (Slaney's scale and area normalisation) from 0 Hz to half the rate.
        patch: side of the square patches.
    """

    rate: int
    samples: int
    fft: int
    hop: int
    mels: int
    patch: int

    @property
    def frames(self) -> int:
        """Analysis windows, centred on every ``hop``-th sample."""
        return 1 + self.samples // self.hop

    @property
    def grid(self) -> Grid:
        """One channel, mel bands by frames."""
        return Grid(1, (self.mels, self.frames), (self.patch, self.patch))


LARGE = Form(rate=16_000, samples=150_526, fft=2048, hop=672, mels=224, patch=16)


def small(rate: int, seconds: float = 1.0, mels: int = 64, patch: int = 8) -> Form:
    """As many frames as bands over at least ``seconds``, with an analysis window of at least 64 ms."""
    hop = ceil(rate * seconds / (mels - 1))
    return Form(rate, hop * (mels - 1), 1 << ceil(np.log2(max(0.064 * rate, hop))), hop, mels, patch)


@dataclass(frozen=True)
class Clips:
    """What a data set's files say, in an order that no file system decides. Nothing is decoded yet.

    Attributes:
        folder: where the files lie.
        files: the sound file of every clip, relative to `folder`.
        train, test: rows of the training and of the test part.
        label: int64 ``(n,)`` of all clips; None where the set has none, and then all of train is for pretraining.
        task: what is predicted, or None.
        validation: rows of the validation part where the source fixes one; else it is carved from train.
        group: int64 ``(n,)``, clips that are not independent (a speaker's, a recording's) share a number, or None.
        begin: int64 ``(n,)``, seconds into the file at which a clip begins; None where all begin with their file.
        lists: other files that decide the above, relative to `folder`.
        notes: what a reader of a score has to know.
    """

    folder: Path
    files: Sequence[str]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    label: NDArray[np.int64] | None = None
    task: Task | None = None
    validation: NDArray[np.int64] | None = None
    group: NDArray[np.int64] | None = None
    begin: NDArray[np.int64] | None = None
    lists: Sequence[str] = ()
    notes: tuple[str, ...] = ()


Read = Callable[[Path, str], Clips]


def family(
    name: str,
    read: Read,
    *,
    title: str,
    licence: str,
    folder: str,
    forms: tuple[Form, ...] = (LARGE,),
    dabs: tuple[float, float] | None = None,
    downloads: tuple[Download, ...] = (),
    manual: str = "",
    transfers: tuple[str, ...] = (),
) -> tuple[Domain, ...]:
    """The domains of one data set: the first form under its own name, another as ``name_bands``.

    ``read(folder, protocol)`` lists the clips; ``dabs`` are the mean and deviation that DABS standardises them with.
    """
    return tuple(
        Domain(
            name=name if form is forms[0] else f"{name}_{form.mels}",
            modality="spectrogram",
            title=f"{title}, {form.mels}x{form.frames} in patches of {form.patch}",
            licence=licence,
            folder=folder,
            load=partial(_load, name, read, form, dabs),
            downloads=downloads,
            manual=manual,
            batch_size=64 if form is LARGE else 256,
            transfers=transfers,
        )
        for form in forms
    )


def _load(name: str, read: Read, form: Form, dabs: tuple[float, float] | None, folder: Path, protocol: str) -> Data:
    return load(name, read(folder, protocol), form, protocol, dabs)


def load(name: str, clips: Clips, form: Form, protocol: str, dabs: tuple[float, float] | None = None) -> Data:
    """Listed clips to splits.

    Under ``dabs`` the large form is DABS's: no clip is resampled, decibels are taken of the *squared* power
    spectrogram, and its published mean and deviation standardise it; training takes the whole training part and the
    validation part *is* the test part: DABS reports the split that it watches. Else decibels are taken once, statistics
    are those of the clips that pretraining sees, and validation is the source's own or carved from train.

    Raises:
        UserError: a clip cannot be read; a split is empty; a class does not occur in train.
    """
    files = [clips.folder / file for file in (*sorted(set(clips.files)), *clips.lists)]
    key = fingerprint(clips.folder, files)
    as_dabs = protocol == "dabs" and form is LARGE
    spectrograms, sums, about = stored(name, clips, key, form, as_dabs=as_dabs)
    train, validation, test = clips.train, clips.validation, clips.test
    if protocol == "dabs":
        train = train if validation is None else np.union1d(train, validation)
        validation = test
    elif validation is None and clips.label is not None:
        kept, held = carve(len(train), label=clips.label[train])
        train, validation = train[kept], train[held]
    if clips.task is not None and clips.label is not None and validation is not None:
        _check(name, clips, clips.task, clips.label[train], clips.label[validation], clips.label[test])
    if not len(train):
        raise UserError(f"{name}: no clip to pretrain on; is {clips.folder} complete?")
    statistics = dabs if as_dabs and dabs is not None else _mean_std(sums[train], form)

    def split(rows: NDArray[np.int64] | None) -> Split | None:
        if rows is None or clips.label is None:
            return None
        return Split((spectrograms,), rows, clips.label[rows], None if clips.group is None else clips.group[rows])

    return Data(
        specs=(form.grid,),
        pretrain=split(train) or Split((spectrograms,), train),
        train=split(train),
        validation=split(validation),
        test=split(test),
        task=clips.task,
        fingerprint=key,
        normalise=Standardise(*statistics),
        notes=(*clips.notes, _cut_note(about, len(clips.files), form)),
    )


def _check(name: str, clips: Clips, task: Task, *labels: NDArray[np.int64]) -> None:
    for part, label in zip(("train", "validation", "test"), labels, strict=True):
        if not len(label):
            raise UserError(f"{name}: no clip in the {part} part; is {clips.folder} complete?")
    missing = np.setdiff1d(np.arange(len(task.classes)), labels[0])
    if len(missing):
        known = task.classes[missing[0]]
        raise UserError(f"{name}: {len(missing)} classes have no clip in train, the first is {known!r}; add some")


def _mean_std(sums: NDArray[np.float64], form: Form) -> tuple[float, float]:
    mean, square = sums.sum(axis=0) / (len(sums) * form.mels * form.frames)
    return float(mean), float(np.sqrt(max(square - mean**2, 1e-6)))


def _cut_note(about: dict[str, int], n: int, form: Form) -> str:
    return (
        f"{about['cut']} of {n} clips are longer than the window of {form.samples / form.rate:.2f} s and lose the rest."
    )


# --- preparing


def stored(
    name: str, clips: Clips, key: str, form: Form, *, as_dabs: bool = False, on_bad: Literal["error", "skip"] = "error"
) -> tuple[NDArray[np.float16], NDArray[np.float64], dict[str, Any]]:
    """The spectrograms ``(n, 1, mels, frames)`` in decibels, their sums, and what there is to say about them.

    The sums are ``(n, 2)``, of the values and of their squares: with them the statistics of any split cost no further
    pass. ``about["cut"]`` counts the clips longer than the window, ``about["bad"]`` says what is wrong with which row:
    such rows are zero and must not be used; without ``skip`` there are none.
    """

    def build(folder: Path) -> None:
        if not clips.files:
            raise UserError(f"{clips.folder}: no sound file below it; is it the right folder?")
        shape = (len(clips.files), 1, form.mels, form.frames)
        spectrograms = allocate(folder / "spectrograms.npy", np.float16, shape)
        sums = np.zeros((len(clips.files), 2))
        bad: dict[int, str] = {}
        cut = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            starts = progress(range(0, len(clips.files), BATCH), f"transforming {name}")
            for start in starts:
                rows = np.arange(start, min(start + BATCH, len(clips.files)))
                read = list(pool.map(partial(_try_read, clips, form, as_dabs, on_bad), rows.tolist()))
                bad |= {int(row): clip for row, clip in zip(rows, read, strict=True) if isinstance(clip, str)}
                good = [(row, clip) for row, clip in zip(rows, read, strict=True) if not isinstance(clip, str)]
                cut += sum(clip.longer for _, clip in good)
                for rate in sorted({clip.rate for _, clip in good}):
                    which = np.array([row for row, clip in good if clip.rate == rate])
                    waves = np.stack([clip.wave for _, clip in good if clip.rate == rate])
                    values = log_mel(waves, rate, form, squared=as_dabs)
                    spectrograms[which] = values
                    sums[which] = np.stack([values.sum(axis=(1, 2, 3)), (values**2).sum(axis=(1, 2, 3))], axis=1)
        np.save(folder / "sums.npy", sums)
        (folder / "about.json").write_text(json.dumps({"cut": cut, "bad": bad}), encoding="utf-8")

    folder = prepared(name, f"{key} {form} {as_dabs} {on_bad} {PREPARATION}", build)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    about["bad"] = {int(row): why for row, why in about["bad"].items()}
    # a plain array over the map: np.memmap's own bookkeeping would be paid at every batch
    return np.asarray(np.load(folder / "spectrograms.npy", mmap_mode="r")), np.load(folder / "sums.npy"), about


@dataclass(frozen=True)
class _Clip:
    wave: NDArray[np.float32]
    rate: int
    longer: bool


def _try_read(clips: Clips, form: Form, own_rate: bool, on_bad: Literal["error", "skip"], row: int) -> _Clip | str:
    begin = 0 if clips.begin is None else int(clips.begin[row])
    try:
        return _Clip(*read_clip(clips.folder / clips.files[row], form, begin=begin, own_rate=own_rate))
    except UserError as error:
        if on_bad == "error":
            raise
        return str(error)


def read_clip(
    path: Path, form: Form, *, begin: int = 0, own_rate: bool = False
) -> tuple[NDArray[np.float32], int, bool]:
    """The first channel as float32 ``(samples,)`` in [-1, 1], cut or followed by zeros; its rate; whether it was cut.

    Args:
        path: any file that libsndfile reads.
        form: the window and the rate.
        begin: seconds into the file.
        own_rate: keep the file's rate.

    Raises:
        UserError: the file is missing, damaged, shorter than it says, empty, or holds a value that is not finite.
    """
    import soundfile

    try:
        _check_riff(path)
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            wanted = form.samples if own_rate else ceil(form.samples * rate / form.rate)
            there = file.frames - begin * rate
            if there <= 0:
                raise UserError(f"{path}: no sound after {begin} s; remove the file or fetch it again")
            file.seek(begin * rate)
            wave = file.read(min(wanted, there), dtype="float32", always_2d=True)[:, 0]
    except FileNotFoundError as error:
        raise UserError(f"{path}: the sound file is missing; the data set's list names it") from error
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: damaged sound file ({error}); fetch it again or remove it") from error
    if len(wave) < min(wanted, there):
        raise UserError(f"{path}: ends after {len(wave)} of {there} samples; fetch it again or remove it")
    if not np.isfinite(wave).all():
        raise UserError(f"{path}: sample {int(np.argmin(np.isfinite(wave)))} is not finite; mend or remove the file")
    if not own_rate and rate != form.rate:
        wave = _resampled(wave, rate, form.rate)
        rate = form.rate
    padded = np.zeros(form.samples, np.float32)
    padded[: min(len(wave), form.samples)] = wave[: form.samples]
    return padded, rate, there > wanted


def _check_riff(path: Path) -> None:
    """A WAV file cut off in its middle: libsndfile would take what is left for the whole."""
    with path.open("rb") as stream:
        head = stream.read(8)
    stated = int.from_bytes(head[4:8], "little")
    # streaming writers put a huge number there
    if head[:4] == b"RIFF" and path.stat().st_size < 8 + stated < 0x7FFFFF00:
        raise UserError(f"{path}: cut off, {path.stat().st_size} of {8 + stated} bytes; fetch it again or remove it")


def _resampled(wave: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    import torch
    from torchaudio.functional import resample

    result: NDArray[np.float32] = resample(torch.from_numpy(wave), rate, target).numpy()
    return result


def log_mel(waves: NDArray[np.float32], rate: int, form: Form, *, squared: bool = False) -> NDArray[np.float32]:
    """Waves ``(n, samples)`` to decibels ``(n, 1, mels, frames)``, at most 80 below a clip's own loudest.

    Equals librosa's ``power_to_db(melspectrogram(...))`` with reflected borders; ``squared`` takes decibels of the
    square of the power spectrogram, as DABS does.
    """
    import torch
    from torchaudio.functional import amplitude_to_DB

    power = _transform(rate, form)(torch.from_numpy(waves)).unsqueeze(1)
    # with four axes the loudest value is taken per clip; with three it would be the batch's
    decibels = amplitude_to_DB(
        power**2 if squared else power, multiplier=10.0, amin=1e-10, db_multiplier=0.0, top_db=80.0
    )
    result: NDArray[np.float32] = decibels.numpy()
    return result


@lru_cache(maxsize=8)
def _transform(rate: int, form: Form) -> Callable[[Tensor], Tensor]:
    from torchaudio.transforms import MelSpectrogram

    mel = MelSpectrogram(
        sample_rate=rate,
        n_fft=form.fft,
        hop_length=form.hop,
        n_mels=form.mels,
        power=2.0,
        norm="slaney",
        mel_scale="slaney",
        pad_mode="reflect",
    )
    empty = int((mel.mel_scale.fb.sum(dim=0) == 0).sum())
    if empty:
        raise UserError(f"{empty} of {form.mels} mel bands hold no frequency at {rate} Hz; use fewer bands")
    return mel  # type: ignore[no-any-return]  # torchaudio is untyped


def duration(path: Path) -> float:
    """Seconds of a sound file, from its header.

    Raises:
        UserError: it is missing or damaged.
    """
    import soundfile

    try:
        return float(soundfile.info(path).duration)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: missing or damaged sound file ({error}); fetch it again") from error


def sounds(folder: Path) -> list[str]:
    """All sound files below a folder, relative, with "/", sorted; hidden ones are left out.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the data set is not there or has another layout")
    found = []
    for root, _, files in os.walk(folder):
        inside = Path(root).relative_to(folder)
        found += [(inside / file).as_posix() for file in files if file.lower().endswith(SUFFIXES) and file[0] != "."]
    return sorted(found)


@dataclass(frozen=True)
class Standardise:
    """``Data.normalise``: stored decibels to ``(x - mean) / std`` in float32."""

    mean: float
    std: float

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """``(B, 1, mels, frames)`` to the same."""
        return tuple((x.float() - self.mean) / self.std for x in inputs)
