"""A contact sheet of augmentations: one example per column, first as it is stored and then in random views.

    python scripts/show_views.py --out docs/views.png

Images are CIFAR-10's at 32 and DTD's at 224 pixels under ``--protocol imix``, sounds are Free Spoken Digit's, sensors
UCI HAR's. A data set whose files are not under ``$DABSMIX_DATA`` is left out.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from dabsmix.data.batches import step_seed
from dabsmix.errors import UserError
from dabsmix.modalities.showing import draw
from dabsmix.source import Source, load, modality_of

VIEWS = 4
COLUMNS = 6
SETS = ("cifar10", "dtd_224", "fsdd", "uci_har")


@dataclass(frozen=True)
class Options:
    """Draw a contact sheet of augmentations."""

    out: Path = Path("docs/views.png")
    """The picture to write."""
    seed: int = 0
    """The seed of the views."""


def examples(name: str, seed: int) -> tuple[str, list[NDArray[np.float32]]]:
    """The modality, and a few examples followed by their views, each ``(COLUMNS, ...)``, standardised."""
    source = Source(name, protocol="imix")
    data = load(source)
    assert data.augment is not None
    rows = np.linspace(0, len(data.pretrain) - 1, COLUMNS).astype(np.int64)
    inputs = data.normalise(data.pretrain.batch(rows))
    generator = torch.Generator().manual_seed(step_seed(seed, 0, "draws"))
    views = [inputs, *(data.augment(inputs, generator) for _ in range(VIEWS))]
    return modality_of(source), [view[0].numpy() for view in views]


def main(options: Options) -> None:
    """Draw and write."""
    shown = {}
    for name in SETS:
        try:
            shown[name] = examples(name, options.seed)
        except UserError as error:
            print(f"left out: {error}")
    height = 1 + VIEWS
    figure, axes = plt.subplots(
        len(shown) * height, COLUMNS, figsize=(COLUMNS * 1.3, len(shown) * height * 1.05), squeeze=False
    )
    for place, (name, (modality, rows)) in enumerate(shown.items()):
        low, high = float(rows[0].min()), float(rows[0].max())
        for row, batch in enumerate(rows):
            line = axes[place * height + row]
            line[0].set_ylabel(name if row == 0 else f"view {row}", fontsize=7)
            for cell, example in zip(line, batch, strict=True):
                draw(cell, modality, example, low, high)
    figure.tight_layout(pad=0.2)
    figure.savefig(options.out, dpi=64)
    print(options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
