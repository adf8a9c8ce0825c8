"""Whether data loading keeps up: examples per second of the loader and of the `dabs` encoder, for every modality.

    python scripts/bench_data.py                                  # one present data set per modality; takes minutes
    python scripts/bench_data.py --domains imagenet_224 --json out.json

For each data set: seconds to prepare it with an empty cache (decode, resize, transform, tokenise), and to load it a
second time; then training examples per second that `Batches.iterate` and `Data.normalise` deliver, first with the
prepared files dropped from the page cache (on Linux), then warm; then examples per second that a bare training step
(e-mix, AdamW, fp32) consumes. Raw files may lie in the page cache while they are prepared. `photos` are generated JPEG
files of 500x375 pixels, read as a user's own data at 224x224: the cost of an image of ImageNet.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dabsmix.data.batches import Batches
from dabsmix.data.domain import Data
from dabsmix.files import data_root
from dabsmix.modalities import image
from dabsmix.model.encoder import make_encoder
from dabsmix.registry import algorithm_class, domain
from dabsmix.run import commit, device_name
from dabsmix.spec import Batch

# For each modality, the first data set that is present is measured.
CHOICES = (
    ("cifar10", "synthetic_image"),
    ("speech_commands", "fsdd", "synthetic_spectrogram"),
    ("pamap2", "uci_har", "synthetic_sensor"),
    ("higgs", "covtype", "synthetic_tabular"),
    ("wikitext103", "wikitext2_valid", "synthetic_text"),
    ("mscoco",),
)
COLUMNS = "{:<22} {:>9} {:>9} {:>8} {:>6} {:>12} {:>12} {:>12} {:>9}"


@dataclass(frozen=True)
class Row:
    """One data set.

    Attributes:
        name: of the domain; ``photos`` for the generated ones.
        examples: for pretraining.
        prepare, again: seconds of the first load, and of a later one.
        batch: examples per step.
        cold, warm: examples per second of the loader; cold is None where the page cache cannot be dropped.
        encoder: examples per second of a training step.
    """

    name: str
    examples: int
    prepare: float
    again: float
    batch: int
    cold: float | None
    warm: float
    encoder: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", help="default: what is here of each modality, and photos")
    parser.add_argument("--data-root", type=Path, help="default: $DABSMIX_DATA, else the user's cache folder")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=400, help="generated photographs (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    options = parser.parse_args()
    root, device = data_root(options.data_root), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = {
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "commit": commit(),
    }
    print("  ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        COLUMNS.format(
            "data", "examples", "prepare s", "again s", "batch", "cold ex/s", "loader ex/s", "step ex/s", "ratio"
        )
    )
    rows = []
    with tempfile.TemporaryDirectory(prefix="dabsmix-bench-") as folder:
        os.environ["DABSMIX_CACHE"] = f"{folder}/cache"
        for name, load, batch_size in sources(options.domains, root, Path(folder), options.photos):
            row = measure(name, load, batch_size, device, options.seconds)
            rows.append(row)
            cold = "-" if row.cold is None else f"{row.cold:,.0f}"
            print(
                COLUMNS.format(
                    row.name,
                    f"{row.examples:,}",
                    f"{row.prepare:.1f}",
                    f"{row.again:.2f}",
                    row.batch,
                    cold,
                    f"{row.warm:,.0f}",
                    f"{row.encoder:,.1f}",
                    f"{row.warm / row.encoder:,.0f}",
                ),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1))


Source = tuple[str, Callable[[], Data], int]
"""Name, loader and batch size."""


def sources(names: list[str] | None, root: Path, folder: Path, photos: int) -> Iterable[Source]:
    """The data sets to measure, one after another."""
    for choice in [[name] for name in names] if names else CHOICES:
        cards = [domain(name) for name in choice if name != "photos"]
        present = [(card, card.present(root) if card.folder else root) for card in cards]
        for card, path in present:
            if path is not None:
                yield card.name, lambda card=card, path=path: card.load(path, "v1"), card.batch_size  # type: ignore[misc]
                break
        else:
            if cards:
                print(f"{' or '.join(choice)}: not under {root}")
    if names is None or "photos" in names:
        write_photos(folder / "photos", photos)
        yield "photos (generated)", lambda: image.load_own(folder / "photos", size=224, patch=16), 64


def measure(name: str, load: Callable[[], Data], batch_size: int, device: torch.device, seconds: float) -> Row:
    began = time.perf_counter()
    data = load()
    prepared = time.perf_counter()
    data = load()
    reloaded = time.perf_counter()
    # a CPU takes so long for a step that a small batch measures the same as a large one
    size = min(batch_size if device.type == "cuda" else 16, len(data.pretrain))
    loader_size = min(batch_size, len(data.pretrain))
    dropped = drop_page_cache(Path(os.environ["DABSMIX_CACHE"]))
    cold = deliver(data, loader_size, device, seconds, epochs=1) if dropped else None
    warm = deliver(data, loader_size, device, seconds)
    trained = train(data, size, device, seconds)
    return Row(name, len(data.pretrain), prepared - began, reloaded - prepared, loader_size, cold, warm, trained)


def deliver(data: Data, batch_size: int, device: torch.device, seconds: float, epochs: int = 1 << 30) -> float:
    """Examples per second that are read, moved to the device and normalised."""
    batches = Batches(data.pretrain, batch_size, seed=0)
    began, delivered = time.perf_counter(), 0
    steps = min(epochs * batches.steps_per_epoch, 1 << 30)
    for raw in batches.iterate(0, steps, device):
        data.normalise(raw.inputs)
        delivered += batch_size
        if time.perf_counter() - began > seconds:
            break
    wait(device)
    return delivered / (time.perf_counter() - began)


def train(data: Data, batch_size: int, device: torch.device, seconds: float) -> float:
    """Examples per second of forward, backward and AdamW on one batch that lies on the device."""
    raw = Batches(data.pretrain, batch_size, seed=0).read(0)
    inputs = data.normalise(tuple(x.to(device) for x in raw.inputs))
    algorithm = algorithm_class("emix")(make_encoder("dabs", data.specs)).to(device)
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=1e-4, fused=True)
    steps, began = -1, 0.0  # the first step warms up
    while steps < 1 or time.perf_counter() - began < seconds:
        algorithm(Batch((inputs,), None, raw.ids, steps + 1)).value.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        steps += 1
        if steps == 0:
            began = time.perf_counter()
    return steps * batch_size / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def drop_page_cache(folder: Path) -> bool:
    """Drop every file of the folder from the page cache; False if the system has no such call."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def write_photos(folder: Path, count: int) -> None:
    """Generated JPEG files of 500x375 points: smooth surfaces under grain, some 90 KB each."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        small: Any = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-12, 13, (375, 500, 1), dtype=np.int16)
        Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number:06}.jpg", quality=90)


if __name__ == "__main__":
    main()
