"""Spectrograms against explicit formulas; intact and damaged sound files; own sounds. All data are generated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from upstream_speech import tone, write_sound

from dabsmix.data.domain import Split, Task
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.modalities.spectrogram import (
    LARGE,
    Clips,
    Form,
    duration,
    load,
    load_further,
    load_own,
    log_mel,
    read_clip,
    small,
)
from dabsmix.spec import Grid

TINY = Form(rate=2000, samples=630, fft=256, hop=90, mels=8, patch=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def stored(split: Split) -> NDArray[Any]:
    return np.asarray(split.inputs[0][split.rows])


def label(split: Split) -> NDArray[Any]:
    assert split.label is not None
    return split.label


# --- the transform


def slaney_mel(hertz: float) -> float:
    """Slaney's Auditory Toolbox: linear to 1000 Hz, logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def slaney_hertz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else float(1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def plain_log_mel(wave: NDArray[np.float32], rate: int, form: Form, squared: bool) -> NDArray[np.float64]:
    """One clip's log-mel spectrogram, loop by loop; ``(mels, frames)``."""
    padded = np.pad(wave.astype(np.float64), form.fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(form.fft) / form.fft)  # Hann, periodic
    edges = [slaney_hertz(m) for m in np.linspace(0, slaney_mel(rate / 2), form.mels + 2)]
    result = np.zeros((form.mels, form.frames))
    for frame in range(form.frames):
        power = np.abs(np.fft.rfft(padded[frame * form.hop :][: form.fft] * window)) ** 2
        for band in range(form.mels):
            low, centre, high = edges[band : band + 3]
            for place, energy in enumerate(power):
                hertz = place * rate / form.fft
                height = min((hertz - low) / (centre - low), (high - hertz) / (high - centre))
                result[band, frame] += max(0.0, height) * 2 / (high - low) * energy  # every filter has area 1
    decibels = 10 * np.log10(np.maximum(1e-10, result**2 if squared else result))
    return np.asarray(np.maximum(decibels, decibels.max() - 80))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("rate", "mels"), [(2000, 8), (3000, 20), (44_100, 12)])
def test_log_mel_equals_the_formulas(squared: bool, rate: int, mels: int) -> None:
    form = replace(TINY, mels=mels)
    waves = np.stack([tone(1, form.samples, 40), 1e-3 * tone(1, form.samples, 9, seed=1)])
    actual = log_mel(waves, rate, form, squared=squared)
    assert actual.shape == (2, 1, mels, form.frames)
    for wave, values in zip(waves, actual, strict=True):
        np.testing.assert_allclose(values[0], plain_log_mel(wave, rate, form, squared), atol=2e-3)


def test_a_quiet_clip_does_not_depend_on_a_loud_one_beside_it() -> None:
    quiet, loud = 1e-5 * tone(1, 630, 50), tone(1, 630, 70, seed=1)
    together = log_mel(np.stack([quiet, loud]), 2000, TINY)
    np.testing.assert_allclose(together[:1], log_mel(quiet[None], 2000, TINY), atol=1e-4)


def test_the_large_form_is_that_of_dabs() -> None:
    assert LARGE.grid == Grid(1, (224, 224), (16, 16))
    assert (LARGE.samples, LARGE.fft, LARGE.hop) == (150_526, 2048, 672)


@pytest.mark.parametrize(("rate", "seconds", "mels"), [(8000, 1.0, 64), (16_000, 1.0, 64), (16_000, 5.0, 32)])
def test_small_forms_are_square_and_long_enough(rate: int, seconds: float, mels: int) -> None:
    form = small(rate, seconds, mels, 8)
    assert form.grid == Grid(1, (mels, mels), (8, 8))
    assert seconds * rate <= form.samples < seconds * rate + mels
    assert form.fft >= max(form.hop, 0.064 * rate)


def test_too_many_bands_for_the_window_are_refused() -> None:
    with pytest.raises(UserError, match=r"of 128 mel bands hold no frequency at 2000 Hz; use fewer bands"):
        log_mel(np.zeros((1, 630), np.float32), 2000, replace(TINY, mels=128, fft=128))


# --- sound files


def test_short_clips_are_followed_by_silence_and_long_ones_cut(tmp_path: Path) -> None:
    wave = tone(1.0, 2000, 100)
    path = write_sound(tmp_path / "a.wav", wave, 2000)
    clip = read_clip(path, TINY)
    assert (clip.rate, clip.longer) == (2000, True)
    np.testing.assert_allclose(clip.wave, wave[:630], atol=2**-15)
    clip = read_clip(path, replace(TINY, samples=2500))
    assert not clip.longer
    np.testing.assert_allclose(clip.wave[:2000], wave, atol=2**-15)
    assert not clip.wave[2000:].any()


def test_only_the_first_channel_counts_and_a_clip_can_begin_later(tmp_path: Path) -> None:
    wave = tone(3.0, 2000, 100)
    path = write_sound(tmp_path / "a.flac", np.stack([wave, -wave], axis=1), 2000)
    np.testing.assert_allclose(read_clip(path, TINY, begin=2).wave, wave[4000:4630], atol=2**-15)
    assert duration(path) == 3.0


@pytest.mark.parametrize("rate", [1000, 8000])
def test_resampling_keeps_the_tone(tmp_path: Path, rate: int) -> None:
    path = write_sound(tmp_path / "a.wav", tone(1.0, rate, 100), rate)
    clip = read_clip(path, TINY)
    assert clip.rate == 2000
    spectrum = np.abs(np.fft.rfft(clip.wave * np.hanning(630), 20_000))
    assert abs(int(spectrum.argmax()) * 2000 / 20_000 - 100) < 2
    assert read_clip(path, TINY, own_rate=True).rate == rate


def damage(path: Path, kind: str) -> None:
    import soundfile

    content = path.read_bytes()
    match kind:
        case "text":
            path.write_text("this is not a sound")
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "header only":
            path.write_bytes(content[:20])
        case "empty":
            soundfile.write(path, np.zeros(0, np.float32), 2000)
        case "nan":
            soundfile.write(path, np.array([0, np.nan], np.float32), 2000, subtype="FLOAT")
        case "gone":
            path.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "damaged sound file"),
        ("cut", "cut off"),
        ("header only", "cut off"),
        ("empty", "no sound after 0 s"),
        ("nan", "sample 1 is not finite"),
        ("gone", "the sound file is missing"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str, message: str) -> None:
    path = write_sound(tmp_path / "a.wav", tone(1.0, 2000, 100), 2000)
    damage(path, kind)
    with pytest.raises(UserError, match=f"a.wav: .*{message}") as error:
        read_clip(path, TINY)
    assert "\n" not in str(error.value)


def test_a_flac_file_cut_in_its_middle_is_named(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.flac", tone(3.0, 16_000, 100), 16_000)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a\.flac: "):
        read_clip(path, small(16_000, 3.0))


# --- preparing


def listing(folder: Path, n: int = 20) -> Clips:
    names = [write_sound(folder / f"{i:02}.wav", tone(0.3, 2000, 50 + 30 * (i % 2), i), 2000).name for i in range(n)]
    return Clips(
        folder,
        names,
        train=np.arange(n - 4),
        test=np.arange(n - 4, n),
        label=np.arange(n) % 2,
        task=Task("classes", "accuracy", ("low", "high")),
    )


def test_stored_rows_are_the_clips_spectrograms_and_standardised_by_train(tmp_path: Path) -> None:
    clips = listing(tmp_path)
    data = load("set", clips, TINY, "v1")
    expected = np.concatenate(
        [log_mel(read_clip(tmp_path / file, TINY).wave[None], 2000, TINY) for file in clips.files]
    )
    labelled = data.require_labelled()
    assert labelled.train.inputs[0].__getitem__(np.arange(20)).dtype == np.float16
    np.testing.assert_allclose(labelled.train.inputs[0][np.arange(20)], expected, atol=0.04)  # float16
    training = expected[labelled.train.rows]
    assert isinstance(data.normalise, Standardise)
    np.testing.assert_allclose([data.normalise.mean, data.normalise.std], [training.mean(), training.std()], rtol=1e-4)
    (x,) = data.normalise(data.pretrain.batch(np.arange(len(data.pretrain))))
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-2


def test_dabs_takes_all_of_train_and_watches_test(tmp_path: Path) -> None:
    clips = listing(tmp_path)
    ours, theirs = load("set", clips, TINY, "v1"), load("set", clips, TINY, "dabs", (1.0, 2.0))
    assert sorted([*ours.require_labelled().train.rows, *ours.require_labelled().validation.rows]) == list(range(16))
    assert len(theirs.pretrain) == 16
    assert theirs.require_labelled().validation.rows.tolist() == [16, 17, 18, 19]
    # DABS has no small form, so its statistics and its squared power do not apply to one
    assert np.array_equal(stored(theirs.require_labelled().test), stored(ours.require_labelled().test))
    assert theirs.normalise != Standardise(1.0, 2.0)


def test_the_dabs_recipe_for_the_large_form(tmp_path: Path) -> None:
    clips = replace(listing(tmp_path, 6), train=np.arange(4), test=np.arange(4, 6))
    data = load("set", clips, LARGE, "dabs", (-20.0, 10.0))
    assert data.specs == (Grid(1, (224, 224), (16, 16)),)
    wave = read_clip(tmp_path / clips.files[5], LARGE, own_rate=True)
    assert wave.rate == 2000  # not resampled
    expected = (log_mel(wave.wave[None], 2000, LARGE, squared=True) + 20) / 10
    (x,) = data.normalise(data.require_labelled().test.batch(np.array([1])))
    np.testing.assert_allclose(x.numpy(), expected, atol=0.01)


def test_mixed_rates_are_each_transformed_at_their_own(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", tone(0.3, 2000, 100), 2000)
    write_sound(tmp_path / "b.wav", tone(0.3, 4000, 100), 4000)
    clips = Clips(tmp_path, ["a.wav", "b.wav"], train=np.arange(2), test=np.arange(0))
    rows = stored(load("set", clips, LARGE, "dabs").pretrain)
    for row, (file, rate) in zip(rows, (("a.wav", 2000), ("b.wav", 4000)), strict=True):
        wave = read_clip(tmp_path / file, LARGE, own_rate=True).wave
        np.testing.assert_allclose(row, log_mel(wave[None], rate, LARGE, squared=True)[0], atol=0.06)


def test_a_class_without_a_training_clip_is_reported(tmp_path: Path) -> None:
    clips = listing(tmp_path)
    with pytest.raises(UserError, match="1 classes have no clip in train, the first is 'high'"):
        load("set", replace(clips, train=np.arange(0, 16, 2)), TINY, "v1")
    with pytest.raises(UserError, match="no clip in the test part"):
        load("set", replace(clips, test=np.arange(0)), TINY, "v1")


# --- a user's own sounds


def write_own(folder: Path, n: int = 40) -> Path:
    for i in range(n):
        kind = ("hum", "whistle")[i % 2]
        write_sound(folder / kind / f"{i:02}.wav", tone(0.4, 8000, (90, 700)[i % 2] + i), 8000)
    return folder


def test_own_class_folders(tmp_path: Path) -> None:
    path = write_own(tmp_path / "sounds")
    data = load_own(path, label="folder", rate=8000, seconds=0.4, mels=32)
    assert data.specs == (Grid(1, (32, 32), (8, 8)),)
    labelled = data.require_labelled()
    assert labelled.task.classes == ("hum", "whistle")
    parts = labelled.splits.values()
    assert sorted(int(row) for part in parts for row in part.rows) == list(range(40))
    further, keys = load_further(path, json.loads(json.dumps(data.state)))
    for part in parts:
        assert [labelled.task.classes[code] for code in label(part)] == [keys[row].split("/")[0] for row in part.rows]
    assert further.specs == data.specs
    assert further.normalise == data.normalise
    assert np.array_equal(stored(further.pretrain)[data.pretrain.rows], stored(data.pretrain))


def test_own_table_of_labels_and_groups(tmp_path: Path) -> None:
    path = write_own(tmp_path / "sounds")
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.wav"))
    lines = [f"s{i % 8},{file},{'yn'[i % 2]}" for i, file in enumerate(files)]
    (tmp_path / "labels.csv").write_text("\n".join(["who,file,answer", *lines]))
    data = load_own(path, label="answer", labels=str(tmp_path / "labels.csv"), group="who", rate=8000, mels=32)
    groups = [set(part.group.tolist()) for part in data.require_labelled().splits.values() if part.group is not None]
    assert len(groups) == 3
    assert len(set.union(*groups)) == sum(len(group) for group in groups) == 8


def test_own_without_labels_and_a_single_file(tmp_path: Path) -> None:
    path = write_own(tmp_path / "sounds")
    data = load_own(path, rate=8000, mels=32)
    assert (len(data.pretrain), data.labelled) == (40, None)
    one, keys = load_further(path / "hum" / "00.wav", data.state)
    assert (len(one.pretrain), keys) == (1, ["00.wav"])


def test_damaged_own_sounds_are_named_or_counted(tmp_path: Path) -> None:
    path = write_own(tmp_path / "sounds")
    (path / "hum" / "04.wav").write_text("no sound")
    write_sound(path / "stray.wav", tone(0.4, 8000, 90), 8000)
    with pytest.raises(UserError, match=r"hum/04\.wav: damaged sound file"):
        load_own(path, label="folder", rate=8000, mels=32)
    data = load_own(path, label="folder", rate=8000, mels=32, on_bad="skip")
    assert sum(len(part) for part in data.require_labelled().splits.values()) == 39
    (note,) = (note for note in data.notes if "skipped" in note)
    assert "1 of 41 sounds was skipped" in note
    assert "04.wav: damaged" in note
    assert any(note.startswith("1 of 40 sounds has no label: pretraining sees 1 of them") for note in data.notes)


def test_mistakes_are_reported(tmp_path: Path) -> None:
    path = write_own(tmp_path / "sounds", 4)
    with pytest.raises(UserError, match="files have no column 'kind': give --label folder"):
        load_own(path, label="kind")
    with pytest.raises(UserError, match="name its column of classes with --label"):
        load_own(path, labels="labels.csv")
    with pytest.raises(UserError, match=r"mels 30, patch 8: .*a multiple of patch"):
        load_own(path, mels=30)
    with pytest.raises(UserError, match="all sounds with a label have 'hum'"):
        load_own(write_own(tmp_path / "one", 1), label="folder", rate=8000, mels=32)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no file below it ends in"):
        load_own(tmp_path / "none")
