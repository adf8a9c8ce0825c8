"""Compare algorithms on real data: every domain × algorithm × seed at equal steps, then a Markdown table.

    python scripts/compare_algorithms.py --domains uci_har digits --steps 300 > table.md

A finished cell (a run's folder under --out, scored) is not done again, an interrupted one goes on where it was; the
same command with --table prints what is there so far. Cells are ordered so that what is finished first is useful
already: all algorithms on one domain, then the next domain, then the next seed.

An algorithm with other hyperparameters is a row of its own: ``contpred:score=masked,normalize=true``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tyro

from dabsmix.config import PretrainConfig, TransferConfig, config_hash, resolve
from dabsmix.errors import UserError
from dabsmix.registry import algorithm_flags, domain
from dabsmix.run import Run
from dabsmix.scoring.intervals import Difference, Measured, compare, holm, measure
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.results import Result, TransferRecord, prediction_key, read_transfer
from dabsmix.source import Source, load
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain
from dabsmix.verbs.transfer import transfer


@dataclass(frozen=True)
class Config:
    """Pretrain and score every domain × algorithm × seed, resumably, and print the comparison as Markdown."""

    domains: tuple[str, ...] = ("digits", "uci_har", "covtype", "fsdd")
    """Data sets to pretrain on and to score on; tasks of classes, scored by accuracy."""
    algos: tuple[str, ...] = (
        *("none", "emix", "dmix", "shed", "contpred", "contdmix", "imix_npair", "imix_moco", "imix_byol"),
    )
    """Algorithms; ALGO:KEY=VALUE,KEY=VALUE for one with other hyperparameters."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of pretraining."""
    steps: int = 400
    """Pretraining steps of every cell."""
    batch_size: int = 64
    """Examples a step."""
    lr: float = 1e-3
    """Learning rate of every algorithm."""
    encoder: str = "tiny"
    """Encoder of every cell."""
    baseline: str = "none"
    """The row that the others are held against, beside the best."""
    labels: tuple[str, str] = ("1", "5/class")
    """All labels, and few: a share or K/class."""
    data_root: Path | None = None
    """Where raw data lie [$DABSMIX_DATA, else the user's cache folder]."""
    out: Path = Path("runs/compare")
    """Folder of the runs."""
    table: bool = False
    """Train nothing: only print the table of the cells that are finished."""
    plot: Path | None = None
    """Also draw the differences from the baseline: a PNG, an SVG or a PDF. Needs matplotlib."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    try:
        cells = plan(config)
        failed = [] if config.table else train(cells, config)
        scored = finished(cells, config)
        print("\n".join(line for name in config.domains for line in block(name, scored, config)))
        if config.plot:
            draw(scored, config, config.plot)
    except UserError as error:
        print(f"compare_algorithms: {error}", file=sys.stderr)
        sys.exit(2)
    if failed:
        print("\n".join(["", *failed]), file=sys.stderr)
        sys.exit(1)


Place = tuple[str, str, int]  # of a cell: domain, row of the table, seed


@dataclass(frozen=True)
class Scored:
    """A finished cell: its run, and the record of its transfer."""

    run: Run
    record: TransferRecord


def plan(config: Config) -> dict[Place, PretrainConfig]:
    """What every cell asks for, in the order in which they are trained."""
    return {
        (name, row, seed): cell(name, row, seed, config)
        for seed in config.seeds
        for name in config.domains
        for row in config.algos
    }


def cell(name: str, row: str, seed: int, config: Config) -> PretrainConfig:
    """One cell; ``row`` is ALGO or ALGO:KEY=VALUE,..."""
    algo, _, settings = row.rpartition(":") if "=" in row else (row, "", "")
    asked = PretrainConfig(
        Source(name, data_root=config.data_root),
        algo=algo,
        encoder=config.encoder,
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        evaluate_every=config.steps,
        out=config.out,
        hyper=dict(setting(algo, text) for text in settings.split(",") if text),
    )
    return resolve(asked, config.batch_size)[0]


def setting(algo: str, text: str) -> tuple[str, Any]:
    """``alpha=2`` as a keyword of the algorithm and a value of its type."""
    key, _, value = text.partition("=")
    kinds = {flag.name: flag.type for flag in algorithm_flags(algo)}
    if key not in kinds:
        raise UserError(f"{algo}:{text}: no hyperparameter {key!r}; there are: {', '.join(kinds)}")
    kind = kinds[key]
    choices = {str(choice).lower(): choice for choice in (get_args(kind) or (True, False))}
    if kind is bool or get_args(kind):
        if value.lower() not in choices:
            raise UserError(f"{algo}:{text}: must be one of {', '.join(choices)}")
        return key, choices[value.lower()]
    try:
        return key, kind(value)
    except ValueError as error:
        raise UserError(f"{algo}:{text}: must be of type {kind.__name__}") from error


def finished(cells: Mapping[Place, PretrainConfig], config: Config) -> dict[Place, Scored]:
    """The cells that are pretrained and scored at all that is asked for."""
    runs = begun(config.out)
    found = {}
    for place, asked in cells.items():
        run = runs.get(config_hash(asked))
        path = run.path / "transfer" / f"{asked.source.domain}.json" if run else None
        if run and path and path.exists():
            record = read_transfer(path)
            if set(config.labels) <= {result.label_fraction for result in record.results}:
                found[place] = Scored(run, record)
    return found


def begun(out: Path) -> dict[str, Run]:
    """Every run in a folder by the hash of its configuration, the newest where there are several."""
    runs = sorted((Run(path.parent) for path in out.glob("*/run.json")), key=lambda run: run.record.created)
    return {run.record.config_hash: run for run in runs}


def train(cells: Mapping[Place, PretrainConfig], config: Config) -> list[str]:
    """Pretrain and score what is not there yet; a cell that fails is reported and does not end the others."""
    done, resumable, failed = finished(cells, config), begun(config.out), []
    for number, (place, asked) in enumerate(cells.items(), start=1):
        if place in done:
            continue
        name, row, seed = place
        began = time.perf_counter()
        accelerator = accelerate()  # one for each cell, for it keeps what it has prepared
        try:
            run = pretrain(replace(asked, resume=config_hash(asked) in resumable), accelerator=accelerator)
            wanted = TransferConfig(run=(run.path,), task=(name,), labels=config.labels, data_root=config.data_root)
            (record,) = transfer(wanted, accelerator=accelerator)
        except UserError as error:
            failed.append(f"failed: {name} {row} seed {seed}: {error}")
            print(failed[-1], file=sys.stderr)
            continue
        found = "  ".join(f"{100 * linear(record, share).value:.1f}" for share in config.labels)
        seconds = time.perf_counter() - began
        print(f"{number}/{len(cells)}  {name}  {row}  seed {seed}:  {found}  ({seconds:.0f} s)", file=sys.stderr)
    return failed


# --- the table


def linear(record: TransferRecord, share: str, of: str = "results") -> Result:
    """The linear probe's result at a share of the labels; ``raw`` is the yardstick on the raw input."""
    results = record.results if of == "results" else record.yardsticks[of]
    return next(r for r in results if (r.probe, r.label_fraction) == ("linear", share))


def block(name: str, scored: Mapping[Place, Scored], config: Config) -> list[str]:
    """Heading, provenance and table of one domain, as lines of Markdown."""
    rows = by_row(name, scored)
    if not rows:
        return [f"### {name}", "", "No cell is finished.", ""]
    everything = [each for by_seed in rows.values() for each in by_seed.values()]
    some = everything[0].record
    if some.headline.metric != "accuracy":
        raise UserError(f"{name} is scored by {some.headline.metric}: this table is of accuracies")

    def values(row: str, share: str) -> list[float]:
        return [linear(each.record, share).value for each in rows[row].values()]

    def chosen(row: str, share: str) -> list[float]:
        return [linear(each.record, share).selected["validation"] for each in rows[row].values()]

    full, few = config.labels
    ranked = sorted(rows, key=lambda row: -np.mean(values(row, full)))
    best = rows[ranked[0]]
    above = {share: gains(rows, config.baseline, share) for share in config.labels}
    against = f"minus {config.baseline}"
    lines = [
        f"### {name}",
        "",
        provenance(name, everything, config),
        "",
        f"| algorithm | seeds | all labels | {against} | minus best | {few} labels | {against} | "
        f"validation, all | {few} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ranked:
        own = rows[row]
        columns = [
            row,
            str(len(own)),
            spread(values(row, full)),
            minus(*above[full][row]) if row in above[full] else "",
            "" if row == ranked[0] else minus(compare(measured(own, full), measured(best, full))),
            spread(values(row, few)),
            minus(*above[few][row]) if row in above[few] else "",
            spread(chosen(row, full)),  # what a choice between rows may go by
            spread(chosen(row, few)),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    raw = [f"{100 * linear(some, share, 'raw').value:.1f}" for share in config.labels]
    majority = f"{100 * some.yardsticks['majority'][0].value:.1f}"
    return [
        *lines,
        f"| *raw input* | | {raw[0]} | | | {raw[1]} | | | |",
        f"| *majority* | | {majority} | | | | | | |",
        "",
    ]


def by_row(name: str, scored: Mapping[Place, Scored]) -> dict[str, dict[int, Scored]]:
    """The finished cells of one domain: row of the table, then seed."""
    rows: dict[str, dict[int, Scored]] = {}
    for (where, row, seed), each in scored.items():
        if where == name:
            rows.setdefault(row, {})[seed] = each
    return rows


def gains(rows: Mapping[str, Mapping[int, Scored]], baseline: str, share: str) -> dict[str, tuple[Difference, bool]]:
    """Each row minus the baseline, and whether that is shown among all the rows (Holm)."""
    if baseline not in rows:
        return {}
    against = measured(rows[baseline], share)
    found = {row: compare(measured(own, share), against) for row, own in rows.items() if row != baseline}
    return dict(zip(found, zip(found.values(), holm([each.p for each in found.values()]), strict=True), strict=True))


def minus(found: Difference, shown: bool = False) -> str:
    """A difference in points with its 95 % interval; bold where it is shown."""
    text = f"{100 * found.value:+.1f}"
    if found.low is not None and found.high is not None:
        text += f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"**{text}**" if shown else text


def measured(cells: Mapping[int, Scored], share: str) -> list[Measured]:
    """The linear probe on test, one entry per seed."""
    return [predictions(each, share) for each in cells.values()]


def predictions(scored: Scored, share: str) -> Measured:
    """One seed: the mean over draws of the labels."""
    path = scored.run.path / "transfer" / f"{scored.record.task}.predictions.npz"
    with np.load(path, allow_pickle=False) as kept:
        predicted = kept[prediction_key("linear", share)]  # classes, (draws, n)
        label, group = kept["label"], kept.get("group")
    width = len(scored.record.classes)
    return measure(metric("accuracy"), [np.eye(width, dtype=np.float32)[each] for each in predicted], label, group)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, in percent."""
    text = f"{100 * np.mean(values):.1f}"
    return f"{text} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else text


def provenance(name: str, cells: Sequence[Scored], config: Config) -> str:
    """What the numbers of a table were measured with."""

    def each(field: str) -> str:
        return ", ".join(sorted({str(getattr(cell.run.record, field)) for cell in cells}))

    data = load(Source(name, data_root=config.data_root))
    labelled = data.require_labelled()
    parts = {"pretrain": data.pretrain, "train": labelled.train, "validation": labelled.validation}
    sizes = ", ".join(f"{len(split):,} {part}" for part, split in parts.items())
    result = linear(cells[0].record, config.labels[0])
    groups = f" in {result.units} groups" if result.units != result.n else ""
    return (
        f"{domain(name).title}; {domain(name).modality}. Examples: {sizes}, {result.n:,} test{groups}. "
        f"{config.steps} steps of {config.batch_size}, lr {config.lr:g}, encoder {config.encoder} "
        f"({each('parameters')} parameters). "
        f"{each('device')}; torch {each('torch')}; commit {each('commit')}; data {each('data_fingerprint')}."
    )


# --- the picture


def draw(scored: Mapping[Place, Scored], config: Config, path: Path) -> None:
    """Every row minus the baseline, in points with its 95 % interval: a panel for each domain, all labels and few."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from error
    names = [name for name in config.domains if config.baseline in by_row(name, scored)]
    rows = [row for row in config.algos if row != config.baseline]
    if not names:
        raise UserError(f"--plot: no domain has a finished cell of the baseline {config.baseline}")
    figure = Figure(figsize=(2.2 + 2.3 * len(names), 1.1 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, panel in zip(names, panels, strict=True):
        cells = by_row(name, scored)
        panel.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        for share, colour, shift in zip(config.labels, ("tab:blue", "tab:orange"), (-0.13, 0.13), strict=True):
            above = gains(cells, config.baseline, share)
            for place, row in enumerate(rows):
                if row not in above:
                    continue
                found, shown = above[row]
                if found.low is not None and found.high is not None:
                    panel.plot([100 * found.low, 100 * found.high], [place + shift] * 2, color=colour, linewidth=1.4)
                # filled where the difference is shown
                panel.plot(
                    [100 * found.value],
                    [place + shift],
                    "o",
                    color=colour,
                    markersize=5,
                    markerfacecolor=colour if shown else "white",
                )
        panel.set_title(name, fontsize=10)
        panel.set_xlabel(f"points above {config.baseline}", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", color="0.92")
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(rows)), rows, fontsize=9)
    panels[0].invert_yaxis()
    for share, colour in zip(config.labels, ("tab:blue", "tab:orange"), strict=True):
        panels[0].plot([], [], "o-", color=colour, label="all labels" if share == "1" else f"{share} labels")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
