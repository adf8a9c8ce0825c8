"""Files generated in upstream's format for the tabular data sets. Everything here is generated, nothing is real."""

from pathlib import Path

import numpy as np


def write_adult(folder: Path, train: int = 200, test: int = 80, seed: int = 0) -> None:
    """``adult.data`` and ``adult.test`` with all of their peculiarities.

    Cells are separated by a comma and a blank, ``?`` is missing, adult.test begins with a comment and ends its labels
    with a full stop, both end with an empty line, and one country is in the test file alone.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)

    def row(country: str) -> str:
        age, rich = int(rng.integers(17, 91)), rng.random() < 0.25
        cells = [
            age,
            rng.choice(["Private", "State-gov", "?"]),
            int(rng.integers(12285, 1484706)),
            rng.choice(["Bachelors", "HS-grad"]),
            int(rng.integers(1, 17)),
            rng.choice(["Never-married", "Married-civ-spouse"]),
            rng.choice(["Sales", "?"]),
            "Husband",
            rng.choice(["White", "Black"]),
            rng.choice(["Male", "Female"]),
            int(rng.integers(0, 2) * rng.integers(0, 99999)),
            0,
            int(rng.integers(1, 100)),
            country,
            ">50K" if rich else "<=50K",
        ]
        return ", ".join(str(cell) for cell in cells)

    rows = [row(str(rng.choice(["United-States", "Mexico", "?"]))) for _ in range(train)]
    (folder / "adult.data").write_text("\n".join(rows) + "\n\n")
    rows = [row("Holand-Netherlands" if i == 3 else "United-States") + "." for i in range(test)]
    (folder / "adult.test").write_text("|1x3 Cross validator\n" + "\n".join(rows) + "\n\n")


def write_covtype(path: Path, rows: int = 60, header: tuple[str, ...] = ()) -> None:
    """Rows of ten measurements, one of four wildernesses, one of forty soils and the cover 1 to 7."""
    rng = np.random.default_rng(0)
    measured = rng.integers(0, 4000, (rows, 10))
    wilderness = np.eye(4, dtype=int)[rng.integers(0, 4, rows)]
    soil = np.eye(40, dtype=int)[rng.integers(0, 40, rows)]
    cover = (np.arange(rows) % 7 + 1)[:, None]
    lines = [",".join(map(str, row)) for row in np.concatenate([measured, wilderness, soil, cover], axis=1).tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(header), *lines] if header else lines) + "\n")


def write_higgs(path: Path, rows: int = 300) -> None:
    """Label and 28 columns in upstream's notation with eighteen digits, no header."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.integers(0, 2, (rows, 1)), rng.normal(size=(rows, 28)).astype(np.float32)], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(f"{cell:.18e}" for cell in row) + "\n" for row in values.tolist()))
