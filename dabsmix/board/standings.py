"""Who stands where on the leaderboard: rows gathered into what may be compared, and which differences are shown.

Rows meet in one block only where the pretraining data, task data, encoder, protocol, probe, labels and metric are the
same. Within a block, runs that differ in their seeds alone are one line.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np

from dabsmix.board.record import Predictions, predictions, transfer_of
from dabsmix.board.row import Row
from dabsmix.scoring.results import Result, TransferRecord

__all__ = ["Against", "Block", "Line", "Section", "standings"]

YARDSTICKS = {
    "raw": "raw input",
    "majority": "majority class",
    "patches": "random patches",
    "patches_narrow": "random patches (narrow)",
    "statistics": "statistics over time",
    "spectrum": "power spectrum",
    "words": "tf-idf of words",
    "words_narrow": "tf-idf of words (narrow)",
    "boosting": "boosted trees",
}
RANDOM_INIT = "none"  # the algorithm that takes no step
RESAMPLES = 300  # where every resample computes the metric anew; means over examples cost nothing and get the default
_SETTINGS = ("steps", "batch_size", "lr", "precision", "pretrain_protocol", "version")


@dataclass(frozen=True)
class Against:
    """A line's difference from the block's first, in the metric's unit, the first subtracted.

    Attributes:
        difference: of the means, over the seeds that both have where ``paired``.
        low, high: its 95 % interval; None unless paired.
        paired: by bootstrap over the same test examples and seeds; otherwise read off the two intervals.
        shown: paired: the interval excludes 0; otherwise: the two intervals, widened by the spread of seeds, are apart.
    """

    difference: float
    low: float | None
    high: float | None
    paired: bool
    shown: bool


@dataclass(frozen=True)
class Line:
    """One algorithm in one setting, or one yardstick.

    Attributes:
        name: the algorithm, or the yardstick.
        part: ``ranked``; ``apart`` where augmentations or labels helped in pretraining; ``yardstick``.
        marks: why it stands apart.
        setting: how it differs from other lines of the same name; empty where there is none.
        seeds: how many; 0 for a yardstick, which no pretraining seed enters.
        mean, std: over seeds; ``std`` is None with one.
        low, high: the 95 % interval over test examples, averaged over runs; None where there is none.
        n: test examples.
        rows: what it was computed from; empty for the yardsticks that are no runs.
        against: None for the block's first line.
        best: it is first, and its difference from every other ranked line and every yardstick is shown.
    """

    name: str
    part: Literal["ranked", "apart", "yardstick"]
    seeds: int
    mean: float
    std: float | None
    low: float | None
    high: float | None
    n: int
    rows: tuple[Row, ...] = ()
    marks: str = ""
    setting: str = ""
    against: Against | None = None
    best: bool = False


@dataclass(frozen=True)
class Block:
    """Lines that may be compared with each other: ranked ones first, best on top, then those apart, then yardsticks."""

    probe: str
    label_fraction: str
    metric: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Section:
    """The blocks of one task, encoder and protocol, and what a reader has to know."""

    domain: str
    task: str
    encoder: str
    protocol: str
    data: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]


def standings(rows: Iterable[Row]) -> list[Section]:
    """Every section of the leaderboard, by domain, task, encoder and protocol; blocks in the order of their rows.

    Reads the rows' records for yardsticks, notes and predictions; a row without record is shown without them.
    """
    sections = _grouped(
        rows,
        lambda r: (r.domain, r.task, r.encoder, r.protocol, r.data_fingerprint, r.pretrain_fingerprint),
    )
    return [_section(sections[key]) for key in sorted(sections)]


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def _section(rows: list[Row]) -> Section:
    settings = _settings(rows)
    blocks = _grouped(rows, lambda r: (r.probe, r.label_fraction, r.metric))
    drawn = tuple(_block(each, settings) for each in blocks.values())
    first = rows[0]
    data = first.data_fingerprint[:8]
    return Section(first.domain, first.task, first.encoder, first.protocol, data, drawn, _notes(rows, drawn))


def _notes(rows: list[Row], blocks: tuple[Block, ...]) -> tuple[str, ...]:
    notes: list[str] = []
    lines = [line for block in blocks for line in block.lines if line.rows]
    if any(line.seeds == 1 for line in lines):
        notes.append(
            "One seed where it says 1: the interval covers the draw of test examples alone, not that of seeds."
        )
    if any(line.against and not line.against.paired for line in lines if line.part != "yardstick"):
        notes.append("Not every pair of lines has predictions of the same test examples: there, intervals that overlap")
        notes[-1] += " read as no difference shown."
    unbacked = {row.run for row in rows if not _transfer(row)}
    if unbacked:
        notes.append(f"No record of {len(unbacked)} run(s): their yardsticks and predictions are missing here.")
    records = [record for row in rows if (record := _transfer(row))]
    of_records = (note for record in records for note in record.notes)
    return tuple(dict.fromkeys([*notes, *of_records]))


# --- a block


def _block(rows: list[Row], settings: dict[tuple[str, str, str], str]) -> Block:
    from dabsmix.scoring.metrics import metric

    sign = 1 if metric(rows[0].metric).higher else -1
    lines = [replace(_line(each), setting=settings[key]) for key, each in _grouped(rows, _entry).items()]
    lines += _yardsticks(rows)
    order = ("ranked", "apart", "yardstick")
    lines.sort(key=lambda line: (order.index(line.part), -sign * line.mean, line.name, line.setting))
    first = lines[0]
    lines = [first, *(replace(line, against=_against(line, first)) for line in lines[1:])]
    rivals = [line.against for line in lines[1:] if line.part != "apart"]
    below = all(each is not None and each.shown and sign * each.difference < 0 for each in rivals)
    lines[0] = replace(first, best=first.part == "ranked" and bool(rivals) and below)
    return Block(rows[0].probe, rows[0].label_fraction, rows[0].metric, tuple(lines))


def _entry(row: Row) -> tuple[str, str, str]:
    """What runs of one line share."""
    return row.algorithm, row.recipe, row.version


def _settings(rows: list[Row]) -> dict[tuple[str, str, str], str]:
    """For each entry the values in which it differs from others of the same algorithm."""
    said: dict[tuple[str, str, str], str] = {}
    for entries in _grouped({_entry(row): row for row in rows}.values(), lambda r: r.algorithm).values():
        values = {_entry(row): {name: str(getattr(row, name)) for name in _SETTINGS} | _hyper(row) for row in entries}
        names = dict.fromkeys(name for each in values.values() for name in each)
        differing = [name for name in names if len({each.get(name) for each in values.values()}) > 1]
        for key, each in values.items():
            said[key] = ", ".join(f"{name} {each[name]}" for name in differing if name in each)
        if len(set(said[key] for key in values)) < len(values):  # they differ in something that is no column
            said |= {key: ", ".join(filter(None, (said[key], f"recipe {key[1]}"))) for key in values}
    return said


def _hyper(row: Row) -> dict[str, str]:
    return {name: str(value) for name, value in json.loads(row.hyper).items()}


def _line(rows: list[Row]) -> Line:
    first = rows[0]
    marks = [f"{first.views} views"] * (first.views != "identical") + ["labels"] * first.uses_labels
    yardstick = first.algorithm == RANDOM_INIT
    by_seed = [[row.value for row in each] for each in _grouped(rows, lambda r: r.seed).values()]
    return _measured(
        "none (random init)" if yardstick else first.algorithm,
        "yardstick" if yardstick else "apart" if marks else "ranked",
        by_seed,
        [(row.low, row.high) for row in rows],
        n=first.n,
        rows=tuple(rows),
        marks=", ".join(marks),
    )


def _measured(
    name: str,
    part: Literal["ranked", "apart", "yardstick"],
    by_seed: list[list[float]],
    intervals: Sequence[tuple[float | None, float | None]],
    **others: Any,
) -> Line:
    """A line from its scores, one list per seed: a seed that was run twice counts once."""
    values = [fmean(each) for each in by_seed]
    ends = [(low, high) for low, high in intervals if low is not None and high is not None]
    complete = len(ends) == len(intervals)
    return Line(
        name,
        part,
        seeds=len(values) if others.get("rows") else 0,
        mean=fmean(values),
        std=stdev(values) if len(values) > 1 else None,
        low=fmean(low for low, _ in ends) if complete else None,
        high=fmean(high for _, high in ends) if complete else None,
        **others,
    )


# --- what only the records know


def _transfer(row: Row) -> TransferRecord | None:
    """What the row's transfer file says; None without a record."""
    found = transfer_of(row)
    return None if found is None else found[1]


def _yardsticks(rows: list[Row]) -> list[Line]:
    """The yardsticks of a block, from the records of its rows; those that agree are one measurement."""
    found: dict[str, dict[float, Result]] = defaultdict(dict)
    for row in rows:
        record = _transfer(row)
        for kind, results in (record.yardsticks if record else {}).items():
            result = _nearest(row, results)
            if result is not None:
                other = "" if result.probe in (row.probe, kind) else f" ({result.probe})"
                found[YARDSTICKS.get(kind, kind) + other].setdefault(result.value, result)
    return [
        _measured(
            name,
            "yardstick",
            [[result.value] for result in results.values()],
            [(result.low, result.high) for result in results.values()],
            n=next(iter(results.values())).n,
        )
        for name, results in found.items()
    ]


def _nearest(row: Row, results: Sequence[Result]) -> Result | None:
    """A yardstick's result for a row: of the same probe where it was measured with that, else of another.

    The share of the labels has to be the same, save for the majority class, which takes none.
    """
    same = [each for each in results if each.metric == row.metric]
    same = [each for each in same if each.label_fraction == row.label_fraction or each.probe == "majority"]
    return min(same, key=lambda r: (r.probe != row.probe, r.label_fraction != row.label_fraction), default=None)


# --- differences


def _against(line: Line, first: Line) -> Against:
    return _paired(line, first) or _unpaired(line, first)


def _unpaired(line: Line, first: Line) -> Against:
    """Read off the two intervals: apart, or no difference shown."""
    (low, high), (first_low, first_high) = _widened(line), _widened(first)
    return Against(line.mean - first.mean, None, None, False, shown=high < first_low or low > first_high)


def _widened(line: Line) -> tuple[float, float]:
    """The interval with the standard error over seeds added in quadrature, at Student's t; NaN where there is none."""
    from scipy.stats import t

    if line.low is None or line.high is None:
        return math.nan, math.nan
    of_seeds = t.ppf(0.975, line.seeds - 1) * line.std / math.sqrt(line.seeds) if line.rows and line.std else 0.0
    return line.mean - math.hypot(line.mean - line.low, of_seeds), line.mean + math.hypot(
        line.high - line.mean, of_seeds
    )


def _paired(line: Line, first: Line) -> Against | None:
    """By paired bootstrap over the seeds that both have; None where predictions are missing or of other examples."""
    if not (line.rows and first.rows):
        return None
    from dabsmix.scoring.intervals import compare
    from dabsmix.scoring.metrics import Undefined, metric

    ours, theirs = ({row.seed: row for row in reversed(each.rows)} for each in (line, first))
    pairs = [(predictions(ours[seed]), predictions(theirs[seed])) for seed in sorted(ours.keys() & theirs.keys())]
    kept = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not kept or len(kept) < len(pairs) or not all(_pairs_up(each, kept[0][0]) for pair in kept for each in pair):
        return None
    score = metric(first.rows[0].metric)
    ours_drawn, theirs_drawn = ([scores for pair in kept for scores in pair[side].scores] for side in (0, 1))
    resamples = {} if score.parts else {"resamples": RESAMPLES}
    try:
        found = compare(score, ours_drawn, theirs_drawn, kept[0][0].label, kept[0][0].group, **resamples)
    except Undefined:
        return None
    return Against(found.difference, found.low, found.high, True, found.shown)


def _pairs_up(one: Predictions, other: Predictions) -> bool:
    """Whether both are of the same examples, in the same order, from as many draws of labels."""
    if (one.group is None) != (other.group is None) or not np.array_equal(one.label, other.label):
        return False
    same_groups = one.group is None or other.group is None or np.array_equal(one.group, other.group)
    return same_groups and len(one.scores) == len(other.scores)
