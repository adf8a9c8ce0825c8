"""Writes small generated files in the formats of upstream speech sets. Everything is generated, nothing is real."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def tone(seconds: float, rate: int, frequency: float, seed: int = 0) -> NDArray[np.float32]:
    """A tone that fades in and out, and a little noise; float32 ``(samples,)``."""
    t = np.arange(round(seconds * rate)) / rate
    noise = 0.01 * np.random.default_rng(seed).normal(size=len(t))
    return (0.4 * np.sin(2 * np.pi * frequency * t) * np.hanning(len(t)) + noise).astype(np.float32)


def write_sound(path: Path, wave: NDArray[np.float32], rate: int) -> Path:
    """A 16-bit file of the kind that its name says."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype="PCM_16")
    return path


def write_fsdd(root: Path, *, speakers: Sequence[str] = ("ann", "bob"), takes: int = 12) -> Path:
    """Digits at 8 kHz, takes 0 to 4 of which are upstream's test part."""
    folder = root / "free-spoken-digit-dataset"
    for digit in range(10):
        for place, speaker in enumerate(speakers):
            for take in range(takes):
                wave = tone(0.3 + 0.05 * take, 8_000, 200 + 150 * digit + 20 * place, seed=take)
                write_sound(folder / "recordings" / f"{digit}_{speaker}_{take}.wav", wave, 8_000)
    return folder


def write_speech_commands(root: Path, version: str, words: Sequence[str], *, noise: Sequence[float] = ()) -> Path:
    """Six speakers a word, two takes each; speaker 5 is for validation, speaker 6 for test. Noise in whole seconds."""
    folder = root / f"speech_commands_{version}"
    listed: dict[int, list[str]] = {5: [], 6: []}
    for place, word in enumerate(words):
        for speaker in range(1, 7):
            for take in range(2):
                name = f"{word}/{speaker:08x}_nohash_{take}.wav"
                write_sound(folder / name, tone(0.9, 16_000, 150 + 90 * place, seed=speaker), 16_000)
                if speaker in listed:
                    listed[speaker].append(name)
    (folder / "validation_list.txt").write_text("\n".join(listed[5]) + "\n")
    (folder / "testing_list.txt").write_text("\n".join(listed[6]) + "\n")
    for i, seconds in enumerate(noise):
        wave = 0.1 * np.random.default_rng(i).normal(size=round(16_000 * seconds))
        write_sound(folder / "_background_noise_" / f"noise_{i}.wav", wave.astype(np.float32), 16_000)
    return folder


def write_audio_mnist(root: Path, *, speakers: Sequence[int]) -> Path:
    """One take of each digit at 48 kHz."""
    folder = root / "AudioMNIST"
    for speaker in speakers:
        for digit in range(10):
            wave = tone(0.1, 48_000, 300 + 100 * digit, seed=speaker)
            write_sound(folder / "data" / f"{speaker:02}" / f"{digit}_{speaker:02}_0.wav", wave, 48_000)
    return folder


def write_fluent_speech(root: Path) -> Path:
    """Three tables with a running number without a name in front, as upstream's; every class occurs in each."""
    from dabsmix.domains.fluent_speech import CLASSES

    folder = root / "fluent_speech_commands_dataset"
    (folder / "data").mkdir(parents=True)
    n = max(len(classes) for classes in CLASSES.values())
    for part, speakers in (("train", ("s1", "s2")), ("valid", ("s3",)), ("test", ("s4",))):
        lines = [",path,speakerId,transcription,action,object,location"]
        for i in range(n * len(speakers)):
            speaker = speakers[i % len(speakers)]
            path = f"wavs/speakers/{speaker}/{part}-{i}.wav"
            values = [classes[(i // len(speakers)) % len(classes)] for classes in CLASSES.values()]
            lines.append(",".join([str(i), path, speaker, '"Turn, please"', *values]))
            write_sound(folder / path, tone(0.5, 16_000, 200 + 30 * i), 16_000)
        (folder / "data" / f"{part}_data.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_voxceleb1(root: Path) -> Path:
    """Three speakers, three videos each, of which the last two are for validation and for test."""
    folder = root / "voxceleb1"
    lines = []
    for speaker in range(3):
        for video in range(3):
            for clip in range(2):
                name = f"id1000{speaker}/video{video}/0000{clip}.wav"
                write_sound(folder / "wav" / name, tone(0.5, 16_000, 150 + 100 * speaker, seed=clip), 16_000)
                lines.append(f"{video + 1} {name}")
    (folder / "iden_split.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_librispeech(root: Path, parts: Sequence[str], *, speakers: int = 3, seconds: float = 1.0) -> Path:
    """FLAC below part/speaker/chapter, with the transcripts that lie beside them."""
    folder = root / "LibriSpeech"
    for part in parts:
        for speaker in range(100, 100 + speakers):
            for chapter in (7, 12):
                place = folder / part / str(speaker) / str(chapter)
                names = [f"{speaker}-{chapter}-{i:04}" for i in range(5)]
                for i, name in enumerate(names):
                    write_sound(place / f"{name}.flac", tone(seconds, 16_000, 100 + speaker + 10 * i), 16_000)
                (place / f"{speaker}-{chapter}.trans.txt").write_text("".join(f"{name} WORDS\n" for name in names))
    return folder
