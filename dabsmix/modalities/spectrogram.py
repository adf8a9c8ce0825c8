"""Sound: clips to log-mel spectrograms, computed once in batches and kept as a float16 memory map.

A file in ``domains/`` lists its clips (`Clips`); everything else is here. Sets of single words have a small size (64
mel bands by 64 frames of about a second, in patches of 8) under their plain name, and a large one as ``name_224``; sets
of sentences have the large size only. The large size is that of DABS (Tamkin et al. 2021): 224 by 224 in patches of 16,
over 9.4 seconds.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from io import BytesIO
from math import ceil, log2
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import allocate, fingerprint, prepared_in_parts, stored_rows
from dabsmix.data.domain import Data, Domain, Labelled, Rows, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import divide
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.modalities.augmentation import SoundViews
from dabsmix.modalities.files import (
    Folder,
    Marked,
    content,
    digest,
    endings_not_read,
    marked_files,
    named,
    own_files,
    own_labels,
    own_split,
    skipped_note,
    usable_rows,
    walk,
)
from dabsmix.modalities.summary import files_summary
from dabsmix.spec import Grid
from dabsmix.terminal import progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LARGE",
    "SUFFIXES",
    "Clip",
    "Clips",
    "Form",
    "duration",
    "load",
    "load_further",
    "load_further_labelled",
    "load_own",
    "log_mel",
    "read_clip",
    "sized_domains",
    "small",
    "sounds",
]

# Part of the cache key: raise it when the same clips would give other spectrograms.
PREPARATION = 2

BATCH = 32
"""Clips that are transformed at once. It bounds the memory."""


SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav")


@dataclass(frozen=True)
class Form:
    """What a spectrogram looks like.

    Attributes:
        rate: Hz; clips are resampled to it.
        samples: of the window; the rest of a longer clip is cut, and a shorter clip is padded with silence.
        fft, hop: samples of one analysis window (Hann), and from one window to the next.
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
    return Form(rate, hop * (mels - 1), 1 << ceil(log2(max(0.064 * rate, hop))), hop, mels, patch)


@dataclass(frozen=True)
class Clips:
    """The clips of a data set, in an order that does not depend on the file system. Nothing is decoded yet.

    Attributes:
        folder: where the files lie.
        files: the sound file of every clip, relative to `folder`.
        train, test: rows of the training and of the test part.
        label: int64 ``(n,)`` of all clips; None if the set has no labels, and then all of train is for pretraining.
        task: what is predicted, or None.
        validation: rows of the validation part if the source fixes one; otherwise it is carved from train.
        pretrain: rows that pretraining sees, if these are not the rows of train.
        group: int64 ``(n,)``, clips that are not independent (of one speaker, one recording) share a number; or None.
        begin: int64 ``(n,)``, seconds into the file at which a clip begins; None if every clip begins with its file.
        lists: other files that decide the above, relative to `folder`.
        notes: what a reader of a score has to know.
    """

    folder: Folder
    files: Sequence[str]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    label: NDArray[np.int64] | None = None
    task: Task | None = None
    validation: NDArray[np.int64] | None = None
    pretrain: NDArray[np.int64] | None = None
    group: NDArray[np.int64] | None = None
    begin: NDArray[np.int64] | None = None
    lists: Sequence[str] = ()
    notes: tuple[str, ...] = ()


ReadClips = Callable[[Path, str], Clips]


def sized_domains(
    name: str,
    read: ReadClips,
    *,
    title: str,
    licence: str,
    folder: str,
    stand_ins: tuple[str, ...] = (),
    forms: tuple[Form, ...] = (LARGE,),
    dabs: tuple[float, float] | None = None,
    downloads: tuple[Download, ...] = (),
    manual: str = "",
    sizes: str = "",
    transfers: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
) -> tuple[Domain, ...]:
    """The domains of one data set: the first form under its own name, another as ``name_bands``.

    ``read(folder, protocol)`` lists the clips. ``dabs`` are the mean and standard deviation by which DABS standardises
    the large size; that size also has the ``aliases``.
    """
    return tuple(
        Domain(
            name=name if form is forms[0] else f"{name}_{form.mels}",
            modality="spectrogram",
            title=f"{title}, {form.mels}x{form.frames} in patches of {form.patch}",
            licence=licence,
            folder=folder,
            stand_ins=stand_ins,
            load=partial(_load, name, read, form, dabs),
            downloads=downloads,
            manual=manual,
            sizes=sizes,
            batch_size=64 if form is LARGE else 256,
            transfers=transfers,
            aliases=aliases if form is LARGE else (),
            needs=needs,
            dabs=f"{name}_{LARGE.mels}" if dabs and form is not LARGE and LARGE in forms else "",
        )
        for form in forms
    )


def _load(
    name: str, read: ReadClips, form: Form, dabs: tuple[float, float] | None, folder: Path, protocol: str
) -> Data:
    return load(name, read(folder, protocol), form, protocol, dabs)


def load(
    name: str,
    clips: Clips,
    form: Form,
    protocol: str,
    dabs: tuple[float, float] | None = None,
    on_bad: Literal["error", "skip"] = "error",
) -> Data:
    """Listed clips to splits.

    Under ``dabs`` the large form is prepared as in DABS: no clip is resampled, decibels are taken of the *squared*
    power spectrogram, and the published mean and standard deviation standardise it. Training takes the whole training
    part, and the validation part *is* the test part: DABS reports the split that it watches. Otherwise decibels are
    taken of the power spectrogram, statistics are those of the clips that pretraining sees, and validation is the
    source's own or is carved from train.

    Raises:
        UserError: a clip cannot be read; a split is empty; a class does not occur in train.
    """
    key = _fingerprint(clips)
    as_dabs = protocol == "dabs" and form is LARGE
    spectrograms, sums, about = stored(name, clips, key, form, as_dabs=as_dabs, on_bad=on_bad)
    train, test = clips.train, clips.test
    if protocol == "dabs" and clips.validation is not None:
        train = np.union1d(train, clips.validation)
    validation = test
    if clips.label is not None:
        train, validation = divide(
            train, test, protocol, validation=clips.validation, label=clips.label, group=clips.group
        )
    if not len(train):
        raise UserError(f"{name}: no clip to train on; is {clips.folder} complete?")
    pretrain = train if clips.pretrain is None else clips.pretrain
    all_rows = Split((spectrograms,), np.arange(len(clips.files)), clips.label, clips.group)
    labelled = None
    if clips.task is not None and clips.label is not None:
        _check(name, clips, clips.task, clips.label[train], clips.label[validation], clips.label[test])
        labelled = Labelled(clips.task, all_rows.take(train), all_rows.take(validation), all_rows.take(test))
    standardise = Standardise(*dabs) if as_dabs and dabs is not None else _statistics(sums[pretrain], form)
    return Data(
        specs=(form.grid,),
        pretrain=all_rows.take(pretrain).drop_partial_label(),
        labelled=labelled,
        fingerprint=key,
        normalise=standardise,
        augment=SoundViews(standardise, form).augment,
        notes=(*clips.notes, *about.cut_note(len(clips.files), form, as_dabs=as_dabs)),
        state={"form": asdict(form), "squared": as_dabs, "mean": standardise.mean, "std": standardise.std},
    )


def _statistics(sums: NDArray[np.float64], form: Form) -> Standardise:
    """From the sums ``(n, 2)`` of the spectrograms that pretraining sees."""
    total, squares = sums.sum(axis=0)
    return Standardise.from_sums(len(sums) * form.mels * form.frames, total, squares)


def _fingerprint(clips: Clips) -> str:
    return fingerprint(clips.folder, [*clips.files, *clips.lists])


def _check(name: str, clips: Clips, task: Task, *labels: NDArray[np.int64]) -> None:
    for part, label in zip(("train", "validation", "test"), labels, strict=True):
        if not len(label):
            raise UserError(f"{name}: no clip in the {part} part; is {clips.folder} complete?")
    missing = np.setdiff1d(np.arange(len(task.classes)), labels[0])
    if len(missing):
        first = task.classes[missing[0]]
        raise UserError(f"{name}: {len(missing)} classes have no clip in train, the first is {first!r}; add some")


# --- sound files to waves of one length, and waves to decibels


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


class Clip(NamedTuple):
    """A sound float32 ``(samples,)`` in [-1, 1], its rate in Hz, and whether the file is longer than the window."""

    wave: NDArray[np.float32]
    rate: int
    longer: bool


def read_clip(path: Folder, form: Form, *, begin: int = 0, own_rate: bool = False) -> Clip:
    """The first channel of a sound file, cut to the form's window or followed by zeros.

    Args:
        path: any file that libsndfile reads.
        form: the window, and the rate that the sound is resampled to.
        begin: seconds into the file.
        own_rate: keep the file's rate; the window has the same number of samples.

    Raises:
        UserError: the file is missing, damaged, shorter than it says, empty, or holds a value that is not finite.
    """
    import soundfile

    try:
        source = content(path)
        _check_riff(path, source)
        with soundfile.SoundFile(source) as file:
            rate = file.samplerate
            needed = form.samples if own_rate else ceil(form.samples * rate / form.rate)
            available = file.frames - begin * rate
            if available <= 0:
                raise UserError(f"{path}: no sound after {begin} s; remove the file or fetch it again")
            file.seek(begin * rate)
            wave = file.read(min(needed, available), dtype="float32", always_2d=True)[:, 0]
    except FileNotFoundError as error:
        raise UserError(f"{path}: the sound file is missing; the data set's list names it") from error
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: damaged sound file ({error}); fetch it again or remove it") from error
    if len(wave) < min(needed, available):
        raise UserError(f"{path}: ends after {len(wave)} of {available} samples; fetch it again or remove it")
    if not np.isfinite(wave).all():
        raise UserError(f"{path}: sample {int(np.argmin(np.isfinite(wave)))} is not finite; fix or remove the file")
    if not own_rate and rate != form.rate:
        wave = _resampled(wave, rate, form.rate)
        rate = form.rate
    padded = np.zeros(form.samples, np.float32)
    padded[: min(len(wave), form.samples)] = wave[: form.samples]
    return Clip(padded, rate, available > needed)


def _check_riff(path: Folder, source: Path | BytesIO) -> None:
    """Raise UserError for a truncated WAV file, which libsndfile would read as if it were complete."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            head, size = stream.read(8), source.stat().st_size
    else:
        head, size = bytes(source.getbuffer()[:8]), len(source.getbuffer())
    stated = int.from_bytes(head[4:8], "little")
    # streaming writers put a huge number there
    if head[:4] == b"RIFF" and size < 8 + stated < 0x7FFFFF00:
        raise UserError(f"{path}: cut off, {size} of {8 + stated} bytes; fetch it again or remove it")


def _resampled(wave: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    import torch
    from torchaudio.functional import resample

    result: NDArray[np.float32] = resample(torch.from_numpy(wave), rate, target).numpy()
    return result


def log_mel(waves: NDArray[np.float32], rate: int, form: Form, *, squared: bool = False) -> NDArray[np.float32]:
    """Waves ``(n, samples)`` to decibels ``(n, 1, mels, frames)``, at most 80 below the loudest of each clip.

    Equals librosa's ``power_to_db(melspectrogram(...))`` with reflected borders; ``squared`` takes decibels of the
    square of the power spectrogram, as DABS does.
    """
    import torch
    from torchaudio.functional import amplitude_to_DB

    power = _transform(rate, form)(torch.from_numpy(waves)).unsqueeze(1)
    # with four axes the loudest value is taken of each clip; with three, of the whole batch
    decibels = amplitude_to_DB(
        power**2 if squared else power, multiplier=10.0, amin=1e-10, db_multiplier=0.0, top_db=80.0
    )
    result: NDArray[np.float32] = decibels.numpy()
    return result


@lru_cache(maxsize=8)
def _transform(rate: int, form: Form) -> Callable[[Tensor], Tensor]:
    from torchaudio.transforms import MelSpectrogram

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about bands that hold no frequency, which are refused below
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


# --- preparing


class About(NamedTuple):
    """How many of the stored clips were cut, and what is wrong with which row."""

    cut: int
    bad: dict[int, str]

    def cut_note(self, n: int, form: Form, *, as_dabs: bool) -> tuple[str, ...]:
        """For ``Data.notes``: how many of ``n`` clips were cut, if any were."""
        if not self.cut:
            return ()
        seconds = form.samples / form.rate
        also = " In training, DABS keeps their last part half of the time." if as_dabs else ""
        return (f"{self.cut} of {n} clips are longer than the window of {seconds:.2f} s; the rest is cut.{also}",)


def stored(
    name: str, clips: Clips, key: str, form: Form, *, as_dabs: bool = False, on_bad: Literal["error", "skip"] = "error"
) -> tuple[Rows, NDArray[np.float64], About]:
    """Transform the clips, once; several processes at once divide a large set (`prepared_in_parts`).

    Returns:
        The spectrograms ``(n, 1, mels, frames)`` in decibels; their sums ``(n, 2)``, of the values and of the squares,
        from which the statistics of any split follow without another pass; and which clips were cut or are bad. Bad
        rows are zero and must not be used; without ``skip`` there are none.
    """

    n = len(clips.files)

    def build(folder: Path, rows: range) -> None:
        if not clips.files:
            raise UserError(f"{clips.folder}: holds no sound file; is it the right folder?")
        spectrograms = allocate(folder / "spectrograms.npy", np.float16, (len(rows), 1, form.mels, form.frames))
        sums = np.zeros((len(rows), 2))
        about = About(0, {})
        read = partial(_read, clips, form, as_dabs, on_bad)
        title = f"transforming {name}" + (f", clips from {rows.start:,}" if len(rows) < n else "")
        # libsndfile reads outside the interpreter lock, so threads use every core
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in progress(title, range(0, len(rows), BATCH)):
                block = range(start, min(start + BATCH, len(rows)))  # rows of this part
                good: dict[int, Clip] = {}
                for row, clip in zip(block, pool.map(read, rows[start : start + BATCH]), strict=True):
                    if isinstance(clip, str):
                        about.bad[rows[row]] = clip
                    else:
                        good[row] = clip
                about = about._replace(cut=about.cut + sum(clip.longer for clip in good.values()))
                for rate in {clip.rate for clip in good.values()}:
                    of_rate = [row for row, clip in good.items() if clip.rate == rate]
                    values = log_mel(np.stack([good[row].wave for row in of_rate]), rate, form, squared=as_dabs)
                    spectrograms[of_rate] = values
                    sums[of_rate] = np.stack([values.sum(axis=(1, 2, 3)), (values**2).sum(axis=(1, 2, 3))], axis=1)
        np.save(folder / "sums.npy", sums)
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")

    full_key = f"{key} {form} {as_dabs} {on_bad} {PREPARATION}"
    folders = prepared_in_parts(name, full_key, n, 2 * form.mels * form.frames, build)
    about = About(0, {})
    for folder in folders:
        cut, bad = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        about = About(about.cut + cut, about.bad | {int(row): fault for row, fault in bad.items()})
    sums = np.concatenate([np.load(folder / "sums.npy") for folder in folders])
    return stored_rows(folders, "spectrograms.npy"), sums, about


def _read(clips: Clips, form: Form, own_rate: bool, on_bad: Literal["error", "skip"], row: int) -> Clip | str:
    """One clip, or what is wrong with it."""
    begin = 0 if clips.begin is None else int(clips.begin[row])
    try:
        return read_clip(clips.folder / clips.files[row], form, begin=begin, own_rate=own_rate)
    except UserError as error:
        if on_bad == "error":
            raise
        return str(error)


def sounds(folder: Path) -> list[str]:
    """All sound files below a folder, as `walk` lists them."""
    return walk(folder, SUFFIXES)


# --- a user's own sounds


def load_own(
    path: Path,
    *,
    label: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
    rate: int = 16_000,
    seconds: float = 1.0,
    mels: int = 64,
    patch: int = 8,
    labels: str = "",
    group: str | None = None,
) -> Data:
    """All sound files below a folder. With a label, a fifth of the labelled ones (or of the groups) become the test.

    Sounds without a label are used for pretraining and are not scored.

    Args:
        path: the folder.
        label: ``folder`` if each class has its own folder; with `labels`, the column of the class.
        on_bad: ``skip`` leaves out files that are damaged, counts them and lists them.
        rate: Hz, to which all files are resampled.
        seconds: how much of every file is read, from its beginning.
        mels: mel bands, and the number of frames.
        patch: side of a patch, in bands and frames.
        labels: a CSV with a header and the columns ``file`` (below the folder), of the label and of the group; its path
            is relative to the folder too.
        group: the column of `labels` that says which files belong together (speaker, place, day).

    Raises:
        UserError: there is no sound, a file is damaged, a label has no sound, or there is only one class.
    """
    form = _own_form(rate, seconds, mels, patch)
    clips = _own_clips(path)
    classes, table, absent = own_labels(clips.folder, clips.files, label, labels, group, on_bad)
    _, _, about = stored("own_sounds", clips, _fingerprint(clips), form, on_bad="skip")
    division = own_split(
        "sounds", clips.folder, clips.files, classes, about.bad, grouped=group is not None, on_bad=on_bad
    )
    labelled = division.label is not None
    clips = replace(
        clips,
        train=division.parts.train if labelled else division.parts.pretrain,
        validation=division.parts.validation if labelled else None,
        test=division.parts.test,
        pretrain=division.parts.pretrain,
        label=division.label,
        task=division.task,
        group=division.group,
        notes=(*division.notes, *absent),
    )
    data = load("own_sounds", clips, form, "v1", on_bad="skip")
    source = digest([data.fingerprint, table])
    summary, flags = _summary(clips.folder, clips.files, endings_not_read(path, SUFFIXES, labels), rate)
    return replace(
        data,
        fingerprint=source,
        notes=(*data.notes, *flags),
        summary=summary,
        state={**data.state, "skipped": division.skipped},
        names=named(clips.files),
    )


def _summary(
    folder: Folder, files: Sequence[str], not_read: Counter[str], rate: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Formats, rates and durations of a user's sounds, and a note if some have a lower rate than ``rate``."""
    import soundfile

    rates: list[int] = []

    def header(file: str) -> tuple[str, float, str] | None:
        try:
            info = soundfile.info(content(folder / file))
        except (UserError, soundfile.SoundFileError, OSError):
            return None  # reading it reports the fault
        rates.append(info.samplerate)
        channels = {1: "mono", 2: "stereo"}.get(info.channels, f"{info.channels} channels")
        return f"{info.format} {info.samplerate} Hz {channels}", info.duration, f"{info.duration:.2f} s"

    lines = files_summary("sounds", files, header, "duration", not_read)
    if not (lower := [sampling_rate for sampling_rate in rates if sampling_rate < rate]):
        return lines, ()
    return lines, (
        f"{len(lower)} of {len(rates)} sounds that were looked at have a lower sampling rate than {rate} Hz and so "
        f"nothing in its highest frequencies; with the option `rate: {min(lower)}` all are read alike.",
    )


def load_further(
    path: Path, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, list[str]]:
    """Further sounds read with a training run's state, all as ``pretrain``; keys are file names below the folder.

    Raises:
        UserError: there are no sounds, or a damaged one is not to be skipped, or no sound can be used.
    """
    clips = _own_clips(path)
    form, key, squared = Form(**state["form"]), _fingerprint(clips), bool(state.get("squared", False))
    spectrograms, _, about = stored("own_sounds", clips, key, form, as_dabs=squared, on_bad="skip")
    rows = usable_rows("sounds", len(clips.files), about.bad, on_bad)
    skipped = [about.bad[row] for row in sorted(about.bad)]
    data = Data(
        specs=(form.grid,),
        pretrain=Split((spectrograms,), rows),
        labelled=None,
        fingerprint=key,
        normalise=Standardise(state["mean"], state["std"]),
        notes=(
            *about.cut_note(len(clips.files), form, as_dabs=False),
            *skipped_note("sounds", skipped, len(clips.files)),
        ),
        state=state,
    )
    return data, [clips.files[row] for row in rows]


def load_further_labelled(
    path: Path,
    state: Mapping[str, Any],
    *,
    label: str,
    on_bad: Literal["error", "skip"] = "error",
    labels: str = "",
    group: str | None = None,
) -> Marked:
    """Further sounds with labels: ``label``, ``labels``, ``group`` as in `load_own`, the rest as in `load_further`."""
    return marked_files("sounds", path, SUFFIXES, load_further(path, state, on_bad), label, labels, group, on_bad)


def _own_form(rate: int, seconds: float, mels: int, patch: int) -> Form:
    if rate < 1000 or seconds <= 0 or min(mels, patch) < 1 or mels < 2 or mels % patch:
        values = f"rate {rate}, seconds {seconds}, mels {mels}, patch {patch}"
        raise UserError(f"{values}: rate is at least 1000 Hz, seconds are positive, and mels is a multiple of patch")
    return small(rate, seconds, mels, patch)


def _own_clips(path: Path) -> Clips:
    folder, files = own_files(path, SUFFIXES)
    return Clips(folder, files, train=np.arange(len(files)), test=np.arange(0))
