"""Writes small generated files in the formats of upstream data sets. Everything here is generated, nothing is real."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def write_pamap2(
    root: Path, *, subjects: Iterable[int] = range(1, 10), bout_seconds: float = 4.0, seed: int = 0
) -> Path:
    """PAMAP2's Protocol folder: 54 columns at 100 Hz, heart rate at 9 Hz, lost packets, time between activities.

    Each activity has its own rhythm and strength in the acceleration; each subject a gain. Both stairs come in two
    bouts. Orientation is invalid, as upstream: 1 0 0 0.
    """
    import pandas as pd

    folder = root / "PAMAP2_Dataset" / "Protocol"
    folder.mkdir(parents=True, exist_ok=True)
    order = (1, 2, 3, 17, 16, 12, 13, 12, 13, 4, 7, 6, 5, 24)
    rhythm = {activity: 0.3 + 0.35 * place for place, activity in enumerate(sorted(set(order)))}
    signature = np.random.default_rng(seed).normal(size=(25, 51))
    for subject in subjects:
        rng = np.random.default_rng([seed, subject])
        bouts = [0, *(code for activity in order for code in (activity, 0))]
        lengths = [round(100 * bout_seconds) if activity else 120 for activity in bouts]
        activity = np.repeat(bouts, lengths)
        n = len(activity)
        seconds = 8.38 + np.arange(n) / 100
        wave = np.sin(2 * np.pi * np.array([rhythm.get(a, 0.0) for a in activity]) * seconds)
        imu = 3 * signature[activity] * wave[:, None] * rng.uniform(0.8, 1.2) + rng.normal(size=(n, 51))
        for sensor in range(3):  # temperature, two accelerometers, gyroscope, magnetometer, orientation
            imu[:, 17 * sensor] = 30 + sensor + seconds / 1000
            imu[:, 17 * sensor + 13 : 17 * sensor + 17] = (1, 0, 0, 0)
            lost = np.flatnonzero(rng.random(n) < 0.003)
            imu[lost, 17 * sensor : 17 * sensor + 17] = np.nan
        heart = 60 + 5 * np.array([rhythm.get(a, 1.0) for a in activity]) * 4 + rng.normal(size=n)
        heart[np.arange(n) % 11 != 4] = np.nan  # begins with a gap, and ends with one
        frame = pd.DataFrame(np.column_stack([seconds, activity, heart.round(), imu]))
        frame = frame.astype({1: int})
        frame.to_csv(
            folder / f"subject10{subject}.dat", sep=" ", header=False, index=False, na_rep="NaN", float_format="%.6g"
        )
    return folder


def write_uci_har(root: Path, *, people: int = 6, seed: int = 0) -> Path:
    """UCI HAR with its subject files: nine channels of 128 readings at 50 Hz, windows overlapping by half."""
    folder = root / "UCI HAR Dataset"
    rng = np.random.default_rng(seed)
    for part, persons in (("train", range(1, people + 1)), ("test", range(people + 1, people + 3))):
        (folder / part / "Inertial Signals").mkdir(parents=True)
        place = [(person, activity) for person in persons for activity in range(1, 7) for _ in range(4)]
        for signal in ("body_acc", "body_gyro", "total_acc"):
            for axis in "xyz":
                lines = []
                for row, (_, activity) in enumerate(place):
                    seconds = (64 * row + np.arange(128)) / 50
                    values = np.sin(2 * np.pi * 0.5 * activity * seconds) * activity / 3 + rng.normal(0, 0.3, 128)
                    lines.append(" ".join(f"{value: .7e}" for value in values))
                path = folder / part / "Inertial Signals" / f"{signal}_{axis}_{part}.txt"
                path.write_text("\n".join(lines) + "\n")
        (folder / part / f"subject_{part}.txt").write_text("".join(f"{person}\n" for person, _ in place))
        (folder / part / f"y_{part}.txt").write_text("".join(f"{activity}\n" for _, activity in place))
    return folder
