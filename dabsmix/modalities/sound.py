"""Sound files to waves of one length, and waves to log-mel spectrograms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import ceil, log2
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError
from dabsmix.modalities.files import Folder, content
from dabsmix.spec import Grid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LARGE", "SUFFIXES", "Clip", "Form", "duration", "log_mel", "read_clip", "small"]

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav")


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
    return Form(rate, hop * (mels - 1), 1 << ceil(log2(max(0.064 * rate, hop))), hop, mels, patch)


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
    """What `read_clip` gives: float32 ``(samples,)`` in [-1, 1], its rate in Hz, and whether the file holds more."""

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
        raise UserError(f"{path}: sample {int(np.argmin(np.isfinite(wave)))} is not finite; fix or remove the file")
    if not own_rate and rate != form.rate:
        wave = _resampled(wave, rate, form.rate)
        rate = form.rate
    padded = np.zeros(form.samples, np.float32)
    padded[: min(len(wave), form.samples)] = wave[: form.samples]
    return Clip(padded, rate, there > wanted)


def _check_riff(path: Folder, source: Path | BytesIO) -> None:
    """A WAV file cut off in its middle: libsndfile would take what is left for the whole."""
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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bands that hold no frequency: refused below
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
