"""Whether the loader keeps up with GPUs at 224x224: examples per second and core, and what eight H200 would need.

    OMP_NUM_THREADS=1 python scripts/bench_loader.py

Generated photographs (JPEG, 500x375 pixels) are prepared as a user's own images, in two parts. Measured are

- *prepare*: images decoded, resized and stored, per second of CPU time;
- *read*: examples copied from the prepared parts into a batch, per second of CPU time. With a GPU this is all that the
  CPU does for an example, besides copying the batch to the GPU;
- *normalise* and *augment*: integers made standardised floats, and one augmented view made (crop, flip, colours), per
  second of CPU time. The loop does both on the device that trains;
- *loader*: examples per second of wall-clock time from `Batches.iterate`, which reads ahead in threads; first with the
  parts dropped from the page cache (on Linux), then from the page cache.

Then the examples per second that a node of GPUs would consume are *estimated* from the FLOPs of a step, and from them
the cores and the bandwidth that its loader needs. A core is assumed to be as fast there as here, and cores not to slow
each other down.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from bench_data import drop_page_cache, write_photos
from bench_scaling import PEAK, PEAK_SHARE

from dabsmix.data.batches import AHEAD, Batches, make_views
from dabsmix.data.domain import Data
from dabsmix.modalities import image
from dabsmix.run import commit, device_name

SIDE, PATCH = 224, 16
GFLOPS = {"emix": 210, "shed": 105}
"""Of an example with vit_base, counted by scripts/bench_scaling.py: an algorithm with two passes and one with one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000, help="images; default: %(default)s, 1.2 GB prepared")
    parser.add_argument("--photos", type=int, default=200, help="distinct images among them; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--batches", type=int, default=40, help="batches in each measurement; default: %(default)s")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of the estimate; default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dabsmix-bench-") as folder:
        os.environ["DABSMIX_CACHE"] = f"{folder}/cache"
        photos = link_photos(Path(folder), options.rows, options.photos)
        began = time.process_time()
        data = image.load_own(photos, size=SIDE, patch=PATCH)
        prepare = options.rows / (time.process_time() - began)
        rates = cpu_rates(data, options.batch_size, options.batches)
        dropped = drop_page_cache(Path(folder) / "cache")
        cold = loader_rate(data, options.batch_size, options.batches) if dropped else None
        warm = loader_rate(data, options.batch_size, options.batches)
    print("| | examples/s |\n|---|---|")
    print(f"| prepare, per core | {prepare:,.0f} |")
    for name, rate in rates.items():
        print(f"| {name}, per core | {rate:,.0f} |")
    print(f"| loader, {AHEAD} threads, not in the page cache | {'–' if cold is None else f'{cold:,.0f}'} |")
    print(f"| loader, {AHEAD} threads, from the page cache | {warm:,.0f} |")
    size = sum(x.nbytes for x in data.pretrain.batch(data.pretrain.rows[:1]))
    print(
        f"\nEstimated for {options.gpus} H200 with vit_base, at {100 * PEAK_SHARE:.0f} % of {PEAK / 1e12:.0f} TFLOP/s:"
        "\n\n| algorithm | GFLOP an example | examples/s | cores that read | GB/s read |\n|---|---|---|---|---|"
    )
    for algo, gflops in GFLOPS.items():
        demand = options.gpus * PEAK * PEAK_SHARE / (1e9 * gflops)
        print(f"| {algo} | {gflops} | {demand:,.0f} | {demand / rates['read']:.1f} | {demand * size / 1e9:.1f} |")
    print(
        f"\n{size:,} bytes an example, batches of {options.batch_size}; {device_name(torch.device('cpu'))}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; commit {commit()}"
    )


def link_photos(folder: Path, rows: int, distinct: int) -> Path:
    """A folder of ``rows`` images, which are links to fewer distinct ones."""
    write_photos(folder / "distinct", distinct)
    (folder / "photos").mkdir()
    for row in range(rows):
        (folder / "photos" / f"{row:07}.jpg").symlink_to(folder / "distinct" / f"{row % distinct:06}.jpg")
    return folder / "photos"


def cpu_rates(data: Data, batch_size: int, num: int) -> dict[str, float]:
    """Examples per second of this process's CPU time for each kind of work; the first batch warms up."""
    batches = Batches(data.pretrain, batch_size, seed=0)
    seconds = dict.fromkeys(("read", "normalise", "augment"), 0.0)
    for step in range(num + 1):
        marks = [time.process_time()]
        raw = batches.read(step)
        marks.append(time.process_time())
        data.normalise(raw.inputs)
        marks.append(time.process_time())
        make_views(data, raw.inputs, 1, step)
        marks.append(time.process_time())
        if step:
            read, normalise, view = (after - before for before, after in pairwise(marks))
            seconds["read"] += read
            seconds["normalise"] += normalise
            seconds["augment"] += view - normalise  # a view is normalised first
    return {name: num * batch_size / spent for name, spent in seconds.items()}


def loader_rate(data: Data, batch_size: int, num: int) -> float:
    """Examples per second that the loader delivers while nothing else happens."""
    batches = Batches(data.pretrain, batch_size, seed=1)
    began = time.perf_counter()
    for _ in batches.iterate(0, num, torch.device("cpu")):
        pass
    return num * batch_size / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
