"""Mixing while labels are learned, compared: every `--head-mix` from random weights and from the best pretrained run.

    python scripts/head_mix.py --runs runs --out docs/science/head_mix.md          # continues where it stopped
    python scripts/head_mix.py --runs runs --domains digits --protocol v2 --minutes 30
    python scripts/head_mix.py --runs runs --tables-only                           # tables of the finished runs only
    python scripts/head_mix.py --runs leaderboard/runs --tables-only               # of the board's rows: seconds
    python scripts/head_mix.py --runs runs --mixes mixup mixup-easy mixup-until20 --baseline mixup   # α over training

`--runs` holds pretrained runs of `dabsmix bench leaderboard/plans/cpu.yaml`. For each data set two algorithms are
compared: `none`, and the one with the best validation score of the linear probe, averaged over the runs that have one;
where runs have mixed records already, theirs, so that a comparison that was begun keeps its algorithm.
Each run is transferred with every head mix; records lie in the run's own folder, and `dabsmix submit` puts them on a
board.
Finetuned networks of grids also read the test split rotated, noisy and blurred: predictions lie beside the record in
`*.deformed.npz`. Intervals and tests are those of the board; Holm's family is a data set and a start.
"""

import argparse
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dabsmix.board.record import transfers
from dabsmix.config import TransferConfig
from dabsmix.data.domain import Data
from dabsmix.run import read_record
from dabsmix.scoring.features import Normalise, each_row
from dabsmix.scoring.finetune import Network
from dabsmix.scoring.intervals import Measured, compare, holm, interval, measure
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.results import HeadMix, HeadMixes, mixed_probe, prediction_key, read_transfer
from dabsmix.spec import Grid
from dabsmix.training import accelerate
from dabsmix.verbs.transfer import transfer

DOMAINS = ("cifar10", "traffic_sign", "uci_har", "covtype", "sst2")
MIXES: tuple[str, ...] = get_args(HeadMixes)
ON_FEATURES = ("mixup", "mixupe", "regmixup", "guided")
UNMIXED = 5e-4  # with so small an α nothing is mixed: linear heads without mixing, trained in the same way
Deform = Callable[[Tensor, torch.Generator], Tensor]


class Cell(NamedTuple):
    """One pretrained run, one head mix: ``none``, or as ``HeadMix`` spells it."""

    domain: str
    algorithm: str
    seed: int
    run: Path
    mix: str


# --- input deformations, on normalised inputs (B, C, *size) whose numbers have about unit variance


def noise(x: Tensor, generator: torch.Generator, std: float) -> Tensor:
    return x + std * torch.randn(x.shape, generator=generator).to(x.device)


def blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """The mean of each three neighbours along every axis."""
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    pooled: torch.Tensor = pool(x, 3, stride=1, padding=1, count_include_pad=False)
    return pooled


def rotation(x: Tensor, generator: torch.Generator, degrees: float) -> Tensor:
    """Rotate by a uniform angle between ± degrees, bilinear, zeros outside."""
    angle = (2 * torch.rand(len(x), generator=generator) - 1) * np.pi * degrees / 180
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(x))
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1).to(x)
    return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)


def deformations(data: Data) -> dict[str, Deform]:
    """The deformations that are defined for the data; none for tables and texts."""
    if not isinstance(data.specs[0], Grid) or len(data.specs) > 1:
        return {}
    plain: dict[str, Deform] = {"noise 0.5": partial(noise, std=0.5), "noise 1": partial(noise, std=1.0), "blur": blur}
    turned = {f"rotation {degrees}": partial(rotation, degrees=degrees) for degrees in (20, 40)}
    return plain | turned if len(data.specs[0].size) == 2 else plain


def normalised_and(deform: Deform, generator: torch.Generator, data: Data) -> Normalise:
    """Normalises inputs the way the data are normalised, then deforms them."""
    return lambda x: (deform(data.normalise(x)[0], generator),)


def deformed(path: Path, network: Network, data: Data) -> None:
    """Write a network's scores on the test split under each deformation, beside the record."""
    test, scores_by_name = data.require_labelled().test, {}
    for name, deform in deformations(data).items():
        generator = torch.Generator().manual_seed(0)
        scores = each_row(
            network,
            network,
            (network.task.num_outputs,),
            test,
            normalised_and(deform, generator, data),
            accelerate(),
        )
        scores_by_name[name] = network.task.scores(scores, network.center, network.scale).numpy()
    if scores_by_name:
        np.savez_compressed(path.with_suffix(".deformed.npz"), **scores_by_name)  # type: ignore[arg-type]  # its stub takes any keyword for a flag


# --- what is to be done


def cells(runs: Path, domains: Sequence[str], mixes: Sequence[str]) -> list[Cell]:
    """Every cell, ordered so that data sets are completed one after another, and within each of them the seeds."""
    all_cells = []
    for domain in domains:
        by_algorithm: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        validation: dict[str, list[float]] = defaultdict(list)
        begun: Counter[str] = Counter()
        for folder in sorted(runs.glob(f"{domain}-*")):
            if not (folder / "run.json").is_file() or (run := read_record(folder)).domain != domain:
                continue
            by_algorithm[run.algorithm].append((run.seed, folder))
            begun[run.algorithm] += len(list(folder.glob(f"transfer/{domain}-*+*.json")))
            record = folder / "transfer" / f"{domain}.json"
            if record.is_file():
                validation[run.algorithm].append(float(read_transfer(record).headline.selected["validation"]))
        trained = [name for name in by_algorithm if name != "none"]
        best = max(trained, key=lambda name: (begun[name], fmean(validation[name] or [-math.inf])), default=None)
        starts = [name for name in ("none", best) if name in by_algorithm]
        seeds = sorted({seed for name in starts for seed, _ in by_algorithm[name]})
        all_cells += [
            Cell(domain, name, seed, folder, mix)
            for seed in seeds
            for name in starts
            for own, folder in by_algorithm[name]
            for mix in mixes
            if own == seed
        ]
    return all_cells


def spelled(text: str) -> str:
    """A head mix as ``HeadMix`` spells it, or ``none``.

    Raises:
        ValueError: it is something else.
    """
    return str(HeadMix.parse(text)) or "none"


def asked_of(cell: Cell, protocol: str) -> HeadMix:
    """The configuration of a transfer; a linear head without mixing is trained the same way as those with mixing."""
    if protocol == "v2" and cell.mix == "none":
        return HeadMix("mixup", UNMIXED)
    return HeadMix.parse(cell.mix)


def stem(cell: Cell, protocol: str) -> str:
    """The record's name."""
    mix = str(asked_of(cell, protocol))
    return f"{cell.domain}-{protocol}" + (f"+{mix}" if mix else "")


def measured(path: Path, probe: str, deformation: str = "") -> Measured | None:
    """The scores from a record's predictions with all labels; None if they are missing."""
    predictions, other = path.with_suffix(".predictions.npz"), path.with_suffix(".deformed.npz")
    if not path.is_file() or not predictions.is_file() or (deformation and not other.is_file()):
        return None
    record = read_transfer(path)
    with np.load(predictions) as arrays:
        label, group = arrays["label"], arrays.get("group")
        drawn = arrays[prediction_key(probe, "1")]
    if deformation:
        with np.load(other) as arrays:
            if deformation not in arrays:
                return None
            drawn = arrays[deformation][None]
    if drawn.dtype.kind == "i":
        drawn = np.eye(max(len(record.classes), int(label.max()) + 1), dtype=np.float32)[drawn]
    return measure(metric(record.headline.metric), list(drawn), label, group)


def table(all_cells: Sequence[Cell], protocol: str, deformation: str = "", baseline: str = "none") -> list[str]:
    """Rows of Markdown: the mean over seeds with its interval, and the difference from the baseline, a head mix.

    Of a seed that was pretrained more than once the first run that has the head mix counts.
    """
    rows = []
    by_seed: dict[tuple[str, str], dict[str, dict[int, Measured]]] = defaultdict(lambda: defaultdict(dict))
    names = {}
    for cell in all_cells:
        mix = str(asked_of(cell, protocol))
        probe = mixed_probe(protocol, mix) if mix else "finetune"
        path = cell.run / "transfer" / f"{stem(cell, protocol)}.json"
        if (value := measured(path, probe, deformation)) is not None:
            by_seed[cell.domain, cell.algorithm][cell.mix].setdefault(cell.seed, value)
            names[cell.domain] = read_transfer(path).headline.metric
    for (domain, algorithm), of_start in by_seed.items():
        by_mix = {mix: list(seeds.values()) for mix, seeds in of_start.items()}
        score_metric = metric(names[domain])
        without = by_mix.get(baseline, [])
        others = [mix for mix in by_mix if mix != baseline]
        gains = [compare(by_mix[mix], without) if without else None for mix in others]
        shown = holm([gain.p if gain else 1.0 for gain in gains])
        for mix, seeds in by_mix.items():
            ends, difference = interval(score_metric, seeds), ""
            if mix != baseline and (gain := gains[others.index(mix)]) is not None:
                difference = f"{100 * gain.value:+.1f}"
                if gain.low is not None and gain.high is not None:
                    difference += f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
                difference += ", shown" if shown[others.index(mix)] else ""
            score = f"{100 * fmean(seed.value for seed in seeds):.1f}"
            if ends.low is not None and ends.high is not None:
                score += f" ({100 * ends.low:.1f} to {100 * ends.high:.1f})"
            rows.append(
                f"| {domain} | {algorithm} | {deformation or '–'} | {mix} | {len(seeds)} | {score} | {difference} |"
            )
    return rows


def shares_kept(all_cells: Sequence[Cell], protocol: str) -> list[str]:
    """Of each data set and start, the share of the mixed samples that guided students learned from, over seeds."""
    curves: dict[tuple[str, str, str], list[list[float]]] = defaultdict(list)
    for cell in all_cells:
        path = cell.run / "transfer" / f"{stem(cell, protocol)}.json"
        if asked_of(cell, protocol).method == "guided" and path.is_file():
            curves[cell.domain, cell.algorithm, cell.mix].append(read_transfer(path).headline.selected["kept"])
    lines = []
    for (domain, algorithm, mix), by_seed in curves.items():
        first, last = (100 * fmean(curve[epoch] for curve in by_seed) for epoch in (0, -1))
        lines.append(
            f"{domain} from {algorithm}, {mix}: {first:.0f} % of the mixed samples are kept in the first epoch, "
            f"{last:.0f} % in the last, and never less than {100 * min(map(min, by_seed)):.0f} %"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of pretrained and transferred runs")
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument("--protocol", choices=("finetune", "v2"), default="finetune", help="v2: linear heads")
    parser.add_argument("--mixes", nargs="+", type=spelled, default=MIXES, help="none, mixup, mixup-easy-until20, ...")
    parser.add_argument("--baseline", type=spelled, default="none", help="the head mix to subtract")
    parser.add_argument("--minutes", type=float, default=360, help="start no cell after this time")
    parser.add_argument("--tables-only", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the tables here")
    options = parser.parse_args()
    on_features = ("none", *ON_FEATURES)
    mixes = [mix for mix in options.mixes if options.protocol == "finetune" or HeadMix.parse(mix).method in on_features]
    all_cells, began, missing = cells(options.runs, options.domains, mixes), time.monotonic(), []
    # a seed that was pretrained more than once is learned from once
    done = {cell._replace(run=Path()) for cell in all_cells if stem(cell, options.protocol) in transfers(cell.run)}
    for cell in all_cells:
        if cell._replace(run=Path()) in done:
            continue
        done.add(cell._replace(run=Path()))
        if options.tables_only or time.monotonic() - began > 60 * options.minutes:
            missing.append(f"{cell.run.name} {cell.mix}")
            continue
        mix = asked_of(cell, options.protocol)
        config = TransferConfig(
            run=(cell.run,),
            task=(cell.domain,),
            protocol=options.protocol,
            labels=("1",),
            head_mix=mix.method,
            mix_alpha=mix.alpha,
            mix_schedule=mix.schedule,
            mix_epochs=mix.epochs,
        )
        # `none` is there to compare with
        transfer(config, accelerator=accelerate(), observe=deformed, answer=False)
        print(f"{cell.run.name} {cell.mix}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    lines = [
        f"| data | start | test inputs | head mix | seeds | score, % | minus {options.baseline}, points |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += table(all_cells, options.protocol, baseline=options.baseline)
    for name in (
        ("rotation 20", "rotation 40", "noise 0.5", "noise 1", "blur") if options.protocol == "finetune" else ()
    ):
        lines += table(all_cells, options.protocol, name, options.baseline)
    absent = [name for name in options.domains if name not in {cell.domain for cell in all_cells}]
    lines += ["", *shares_kept(all_cells, options.protocol)]
    lines += [
        "",
        f"Missing: {', '.join(missing) or 'no cell'}; without runs in {options.runs}: {', '.join(absent) or 'none'}.",
    ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
