"""Standings of the leaderboard: rows gathered into blocks that may be compared, and the differences that are shown.

Rows meet in one block only where the pretraining data, task data, encoder, protocol, probe, labels, metric and budget
(steps and batch) are the same. The random encoder and the supervised one belong to every budget. Within a block, runs
that differ in their seeds alone are one line.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Literal

from dabsmix.board.record import TransferFile, agrees, predictions_of, transfer_of, yardstick_predictions
from dabsmix.board.row import Row
from dabsmix.errors import UserError
from dabsmix.scoring.intervals import (
    ALPHA,
    MIN_GROUPS,
    MIN_SEEDS,
    Difference,
    Estimate,
    Measured,
    average,
    compare,
    holm,
    interval,
    measure,
    student_quantile,
    unpaired,
)
from dabsmix.scoring.metrics import Undefined, metric
from dabsmix.scoring.results import AT_EDGE, Result

__all__ = ["Against", "Line", "Ranking", "Section", "by_section", "is_random", "labels", "section_of", "standings"]

YARDSTICKS = {
    "raw": "raw input",
    "majority": "majority class",
    "patches": "random patches",
    "patches_narrow": "random patches (narrow)",
    "statistics": "channel statistics",
    "spectrum": "power spectrum",
    "words": "tf-idf of words",
    "words_narrow": "tf-idf of words (narrow)",
    "boosting": "boosted trees",
}
RANDOM_INIT = "none"  # the algorithm that takes no step
SUPERVISED = "supervised"
_SETTINGS = ("lr", "precision", "pretrain_protocol", "version")
_HALF_WIDTH = 1.96  # of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Against:
    """A line's gain over the random encoder, in the metric's unit, the random encoder subtracted.

    Attributes:
        difference: of the means over seeds.
        low, high: its 95 % interval; None where a side has fewer than three seeds or there are too few groups.
        paired: over the same test examples; otherwise from the two lines' own intervals, which makes it wider.
        shown: whether the difference holds among all the block's comparisons with the random encoder (Holm).
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
        part: ``ranked``; ``apart`` where augmentations, labels or other weights helped in pretraining; ``yardstick``.
        marks: why it is listed apart.
        budget: steps, batch and learning rate of the pretraining; empty for yardsticks.
        flops: of the pretraining; None for yardsticks, and where a run did not count them.
        setting: how it differs from other lines of the same name; empty if there is no other.
        seeds: how many; 0 for a yardstick, which no pretraining seed enters.
        mean, std: over seeds; ``std`` is None with one.
        low, high: the 95 % interval of the mean over seeds; None if there is no interval.
        n: test examples; ``groups`` that they come from, None if they are independent or were not counted.
        num_features: numbers that the probe read of each example, the most over seeds; None if not counted.
        rows: what it was computed from; empty for the yardsticks that are not runs.
        runs: each seed reduced to what a comparison needs; None without predictions, and where the caller of
            `section_of` needs none.
        against: the gain over the random encoder; None for yardsticks and where the block has no random encoder.
        best: its lead over the random encoder, every yardstick and every line of another ranked algorithm is each
            significant at 5 %, divided by the number of the algorithm's own ranked lines.
    """

    name: str
    part: Literal["ranked", "apart", "yardstick"]
    seeds: int
    mean: float
    std: float | None
    low: float | None
    high: float | None
    n: int
    groups: int | None = None
    num_features: int | None = None
    rows: tuple[Row, ...] = ()
    runs: tuple[Measured, ...] | None = None
    marks: str = ""
    budget: str = ""
    flops: float | None = None
    setting: str = ""
    against: Against | None = None
    best: bool = False


@dataclass(frozen=True)
class Ranking:
    """Lines that may be compared with each other: ranked ones first, best on top, then those apart, then yardsticks."""

    probe: str
    label_fraction: str
    metric: str
    lines: tuple[Line, ...]
    budget: str = ""  # steps and batch of the ranked lines; empty if there are none


@dataclass(frozen=True)
class Section:
    """The blocks of one task, encoder and protocol, and what a reader has to know."""

    domain: str
    task: str
    encoder: str
    protocol: str
    data: str
    blocks: tuple[Ranking, ...]
    notes: tuple[str, ...]
    failed: tuple[Row, ...] = ()

    def failures(self) -> dict[tuple[str, str], int]:
        """How many runs of an algorithm failed with a budget, leaving out those that would not be ranked."""
        ranked = [row for row in self.failed if not _marks(row) and row.algorithm not in (RANDOM_INIT, SUPERVISED)]
        return Counter((row.algorithm, _budget(row)) for row in ranked)


def standings(rows: Iterable[Row]) -> list[Section]:
    """Every section of the leaderboard, in the order of `by_section`; see `section_of`."""
    return [section_of(of_section) for of_section in by_section(rows)]


def by_section(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each section, by domain, task, encoder and protocol.

    A failed run whose configuration was run again and has a score is left out.
    """
    rows = list(rows)
    scored = {row.config_hash for row in rows if not row.failure}
    sections = _grouped(
        (row for row in rows if not (row.failure and row.config_hash in scored)),
        lambda r: (r.domain, r.task, r.encoder, r.protocol, r.data_fingerprint, r.pretrain_fingerprint),
    )
    return [sections[key] for key in sorted(sections)]


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


Sources = Mapping[tuple[str, ...], TransferFile | None]
"""The transfer file behind each row, by `_place`; None for a row without a record."""


def _place(row: Row) -> tuple[str, ...]:
    return row.run, *row.key


def section_of(rows: list[Row], *, for_overview: bool = False) -> Section:
    """One section, its blocks in the order of their rows. Rows of failed runs are in no block.

    Reads the rows' records for yardsticks, notes and predictions; a row without record is shown without them.

    Args:
        rows: of one section, see `by_section`.
        for_overview: leave each line its `Line.runs`, a number for each test example of each row, and leave out the
            yardsticks of the records, and with them the star and what the notes say of them.
    """
    first, failed = rows[0], tuple(row for row in rows if row.failure)
    rows = _random_once([row for row in rows if not row.failure])
    settings = _settings(rows)
    sources = {_place(row): transfer_of(row) for row in rows}
    blocks = _grouped(rows, lambda r: (r.probe, r.label_fraction, r.metric))
    drawn = tuple(
        _block(part, settings, sources, for_overview) for of_block in blocks.values() for part in _budgets(of_block)
    )
    if not for_overview:
        drawn = tuple(replace(block, lines=tuple(replace(line, runs=None) for line in block.lines)) for block in drawn)
    data, notes = first.data_fingerprint[:8], _notes(rows, drawn, sources)
    return Section(first.domain, first.task, first.encoder, first.protocol, data, drawn, notes, failed)


def _random_once(rows: list[Row]) -> list[Row]:
    """The rows; recipes of the random encoder that gave equal encoders are one: no batch was trained on."""
    untrained = [row for row in rows if _is_untrained(row)]
    first = {row.encoder_sha256: row.recipe for row in reversed(untrained)}
    same = {row.recipe: first[row.encoder_sha256] for row in untrained if first[row.encoder_sha256] != row.recipe}
    return [replace(row, recipe=same.get(row.recipe, row.recipe)) if _is_untrained(row) else row for row in rows]


def _notes(rows: list[Row], blocks: tuple[Ranking, ...], sources: Sources) -> tuple[str, ...]:
    notes: list[str] = []
    lines = [line for block in blocks for line in block.lines if line.rows]
    if any(0 < line.seeds < MIN_SEEDS for line in lines):
        notes.append(
            f"Fewer than {MIN_SEEDS} seeds on a side: no difference is shown. With 1 seed, the interval covers the "
            "draw of test examples alone, not that of seeds."
        )
    if any(line.groups is not None and line.groups < MIN_GROUPS for line in lines):
        notes.append(
            f"The test rows come from fewer than {MIN_GROUPS} groups: there is no interval, because nothing "
            "says how other groups would differ."
        )
    if any(line.against and not line.against.paired for line in lines):
        notes.append("Not every line has predictions of the same test examples: their gains have wider intervals.")
    notes += _unbeaten(blocks)
    unbacked = {row.run for row in rows if sources[_place(row)] is None}
    if unbacked:
        notes.append(f"No record of {len(unbacked)} run(s): their yardsticks and predictions are missing here.")
    files = {(place[0], source.stem): source.transfer for place, source in sources.items() if source}
    of_records = dict.fromkeys(note for transfer in files.values() for note in transfer.notes if AT_EDGE not in note)
    return *notes, *of_records, *_at_edge([result for transfer in files.values() for result in transfer.results])


def _at_edge(results: Sequence[Result]) -> list[str]:
    """One sentence for each probe and share of the labels in place of each record's own."""
    chosen: dict[tuple[str, str], list[bool]] = {}
    for result in results:
        if result.probe in ("linear", "ridge"):
            at_edge = bool(result.selected.get("at_edge"))
            chosen.setdefault((result.probe, result.label_fraction), []).append(at_edge)
    return [
        f"{probe}, {labels(share)}: {sum(at_edge)} of {len(at_edge)} scores chose the edge of the probe's grid."
        for (probe, share), at_edge in chosen.items()
        if any(at_edge)
    ]


def _unbeaten(blocks: Sequence[Ranking]) -> list[str]:
    """Where algorithms score no higher than the best yardstick, in one line for all of them and one for some."""
    every, some = [], []
    for block in blocks:
        scale = metric(block.metric)
        sign = 1 if scale.higher else -1
        ranked = [line for line in block.lines if line.part == "ranked"]
        best = max(
            (line for line in block.lines if line.part == "yardstick"), key=lambda line: sign * line.mean, default=None
        )
        if best is None or not ranked:
            continue
        below = dict.fromkeys(line.name for line in ranked if sign * line.mean <= sign * best.mean)
        score = f"{100 * best.mean:.1f}" if scale.span[1] == 1 else f"{best.mean:.4f}"
        where = f"{block.probe}, {labels(block.label_fraction)}: {best.name} {score}"
        if len(below) == len({line.name for line in ranked}):
            every.append(where)
        elif below:
            some.append(f"{', '.join(below)} ({where})")
    sentences = []
    if every:
        sentences.append(
            f"No algorithm scores above the best yardstick, so none has shown anything: {'; '.join(every)}."
        )
    if some:
        sentences.append(f"Not above the best yardstick: {'; '.join(some)}.")
    return sentences


def labels(fraction: str) -> str:
    """How many labels a probe had: ``all labels``, ``10 % of labels``, ``5 per class``."""
    if fraction.endswith("/class"):
        return fraction.replace("/", " per ")
    return "all labels" if float(fraction) == 1 else f"{float(fraction) * 100:g} % of labels"


# --- a block


def _budgets(rows: list[Row]) -> list[list[Row]]:
    """Rows of equal steps and batch, the smallest budget first; the random and the supervised encoder go with each."""
    exempt = [row for row in rows if row.algorithm in (RANDOM_INIT, SUPERVISED)]
    others = _grouped((row for row in rows if row not in exempt), lambda r: (r.steps * r.batch_size, r.batch_size))
    return [others[key] + exempt for key in sorted(others)] or [exempt]


def _block(rows: list[Row], settings: dict[tuple[str, str, str], str], sources: Sources, for_overview: bool) -> Ranking:
    scale = metric(rows[0].metric)
    sign = 1 if scale.higher else -1
    lines = [replace(_line(of_line, sources), setting=settings[key]) for key, of_line in _grouped(rows, _entry).items()]
    if not for_overview:
        lines += _yardsticks(rows, sources)
    order = ("ranked", "apart", "yardstick")
    lines.sort(key=lambda line: (order.index(line.part), -sign * line.mean, line.name, line.setting))
    lines = _gains(lines)
    first = lines[0]
    if first.part == "ranked" and _leads(first, lines[1:], sign):
        lines[0] = replace(first, best=True)
    budget = next((_budget(line.rows[0]) for line in lines if line.part == "ranked"), "")
    return Ranking(rows[0].probe, rows[0].label_fraction, rows[0].metric, tuple(lines), budget)


def _budget(row: Row) -> str:
    return f"{row.steps} × {row.batch_size}"


def _gains(lines: list[Line]) -> list[Line]:
    """The lines with their gains over the random encoder: one family, corrected by Holm."""
    random = max((line for line in lines if is_random(line)), key=lambda line: line.seeds, default=None)
    if random is None:
        return lines
    others = [line for line in lines if line.part != "yardstick"]
    differences = [_difference(line, random) for line in others]
    shown = holm([difference.p for difference, _ in differences])
    gains = {
        id(line): Against(difference.value, difference.low, difference.high, paired, rejected)
        for line, (difference, paired), rejected in zip(others, differences, shown, strict=True)
    }
    return [replace(line, against=gains.get(id(line))) for line in lines]


def _leads(first: Line, rivals: list[Line], sign: int) -> bool:
    """Whether each lead is significant by itself: an intersection-union test, which needs no correction for rivals.

    Another recipe of the same algorithm is not a rival, but the best of several was chosen by these scores, which
    Bonferroni corrects. Without a random encoder or another yardstick no line leads.
    """
    recipes = 1 + sum(line.part == "ranked" and line.name == first.name for line in rivals)
    rivals = [line for line in rivals if line.part != "apart" and line.name != first.name]
    kinds = {is_random(line) for line in rivals if line.part == "yardstick"}
    if kinds != {True, False}:
        return False
    leads = (_difference(first, line)[0] for line in rivals)
    return all(lead.p < ALPHA / recipes and sign * lead.value > 0 for lead in leads)


def is_random(line: Line) -> bool:
    """Whether a line is that of the random encoder."""
    return bool(line.rows) and _is_untrained(line.rows[0])


def _is_untrained(row: Row) -> bool:
    return row.algorithm == RANDOM_INIT and not row.init


def _entry(row: Row) -> tuple[str, str, str]:
    """What runs of one line share."""
    return row.algorithm, row.recipe, row.version


def _settings(rows: list[Row]) -> dict[tuple[str, str, str], str]:
    """For each entry the values in which it differs from others of the same algorithm."""
    settings: dict[tuple[str, str, str], str] = {}
    for entries in _grouped({_entry(row): row for row in rows}.values(), lambda r: r.algorithm).values():
        values = {_entry(row): {name: str(getattr(row, name)) for name in _SETTINGS} | _hyper(row) for row in entries}
        names = dict.fromkeys(name for by_name in values.values() for name in by_name)
        differing = [name for name in names if len({by_name.get(name) for by_name in values.values()}) > 1]
        for key, by_name in values.items():
            settings[key] = ", ".join(f"{name} {by_name[name]}" for name in differing if name in by_name)
        if len(set(settings[key] for key in values)) < len(values):  # they differ in something that is not a column
            settings |= {key: ", ".join(filter(None, (settings[key], f"recipe {key[1]}"))) for key in values}
    return settings


def _hyper(row: Row) -> dict[str, str]:
    return {name: str(value) for name, value in json.loads(row.hyper).items()}


def _line(rows: list[Row], sources: Sources) -> Line:
    first = rows[0]
    marks = _marks(first)
    yardstick = _is_untrained(first)
    values = _by_seed(rows)
    runs = _measured(rows, sources)
    results = [_result(row, sources) for row in rows]
    groups = next((result.units for result in results if result and result.units), None)
    counts = [
        row.num_features or (result.num_features if result else 0) for row, result in zip(rows, results, strict=True)
    ]
    if runs is not None:
        estimated = interval(metric(first.metric), runs)
        low, high = estimated.low, estimated.high
    elif len(rows) == 1:
        low, high = first.low, first.high
    else:
        low, high = _from_rows(rows)
    return Line(
        "none (random init)" if yardstick else first.algorithm,
        "yardstick" if yardstick else "apart" if marks else "ranked",
        seeds=len(values),
        mean=fmean(values),
        std=stdev(values) if len(values) > 1 else None,
        low=low,
        high=high,
        n=first.n,
        groups=groups if groups and groups < first.n else None,
        num_features=max(counts) or None,
        rows=tuple(rows),
        runs=runs,
        marks=", ".join(marks),
        flops=0.0 if first.steps == 0 else next((row.train_flops for row in rows if row.train_flops is not None), None),
        budget="0 steps" if first.steps == 0 else f"{_budget(first)}, lr {first.lr:g}",
    )


def _marks(row: Row) -> list[str]:
    """What helped in pretraining beside the data themselves."""
    marks = [f"{row.views} views"] * (row.views != "identical") + ["labels"] * row.uses_labels
    return marks + [f"from {row.init}"] * bool(row.init)


def _by_seed(rows: Sequence[Row]) -> list[float]:
    """The score of each seed: one that was run twice counts once."""
    return [fmean(row.value for row in of_seed) for of_seed in _grouped(rows, lambda r: r.seed).values()]


def _from_rows(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """The interval of the mean over seeds without predictions, within what the metric can be."""
    estimated = _estimate(rows)
    if estimated is None:
        return None, None
    half = student_quantile(estimated.degrees) * math.sqrt(estimated.variance)
    least, most = metric(rows[0].metric).span
    return max(estimated.value - half, least), min(estimated.value + half, most)


def _estimate(rows: Sequence[Row]) -> Estimate | None:
    """From scores and intervals alone: the spread of seeds, and the part of the test examples as if it were common."""
    ends = [(row.low, row.high) for row in rows]
    widths = [high - low for low, high in ends if low is not None and high is not None]
    if len(widths) < len(rows):
        return None
    values = _by_seed(rows)
    of_seeds = stdev(values) ** 2 / len(values) if len(values) > 1 else 0.0
    of_units = fmean((width / 2 / _HALF_WIDTH) ** 2 for width in widths)
    variance = of_seeds + of_units
    degrees = variance**2 / (of_seeds**2 / (len(values) - 1)) if of_seeds else math.inf
    return Estimate(fmean(values), variance, degrees)


# --- what only the records know


def _yardsticks(rows: list[Row], sources: Sources) -> list[Line]:
    """The yardsticks of a block, from the records of its rows; those that agree are one measurement."""
    by_name: dict[str, dict[float, tuple[Result, Measured | None]]] = defaultdict(dict)
    for row in rows:
        source = sources[_place(row)]
        for kind, results in (source.transfer.yardsticks if source else {}).items():
            result = _nearest(row, results)
            if result is not None:
                other = "" if result.probe in (row.probe, kind) else f" ({result.probe})"
                measurements = by_name[YARDSTICKS.get(kind, kind) + other]
                if measurements.get(result.value, (result, None))[1] is None:
                    measurements[result.value] = result, _measured_yardstick(row, kind, result, source)
    lines = []
    for name, measurements in by_name.items():
        distinct = [result for result, _ in measurements.values()]
        runs = tuple(run for _, run in measurements.values() if run is not None)
        ends = [(result.low, result.high) for result in distinct]
        low, high = zip(*ends, strict=True)
        complete = None not in low + high
        line = Line(
            name,
            "yardstick",
            seeds=0,
            mean=fmean(result.value for result in distinct),
            std=None,
            low=fmean(low) if complete else None,
            high=fmean(high) if complete else None,
            n=distinct[0].n,
            groups=distinct[0].units if 0 < distinct[0].units < distinct[0].n else None,
            num_features=max(result.num_features for result in distinct) or None,
            runs=runs if len(runs) == len(distinct) else None,
        )
        lines.append(line)
    return lines


def _measured_yardstick(row: Row, kind: str, result: Result, source: TransferFile | None) -> Measured | None:
    """None where the predictions are not stored, or do not give the score."""
    try:
        stored = yardstick_predictions(row, kind, result, source)
        run = None if stored is None else measure(metric(row.metric), stored.scores, stored.label, stored.group)
    except (UserError, Undefined):
        return None
    return run if run is not None and math.isclose(run.value, result.value, abs_tol=1e-5) else None


def _nearest(row: Row, results: Sequence[Result]) -> Result | None:
    """A yardstick's result for a row: of the same probe where it was measured with that, else of another.

    The share of the labels has to be the same, except for the majority class, which takes none.
    """
    same = [result for result in results if result.metric == row.metric]
    same = [result for result in same if result.label_fraction == row.label_fraction or result.probe == "majority"]
    return min(same, key=lambda r: (r.probe != row.probe, r.label_fraction != row.label_fraction), default=None)


def _result(row: Row, sources: Sources) -> Result | None:
    """What the record says of a row; None without a record."""
    source = sources[_place(row)]
    for result in source.transfer.results if source else ():
        if (result.probe, result.label_fraction, result.metric) == (row.probe, row.label_fraction, row.metric):
            return result
    return None


# --- differences


def _difference(line: Line, other: Line) -> tuple[Difference, bool]:
    """The first minus the second, and whether over the same test examples; a yardstick has no seeds."""
    ours, theirs = line.runs, other.runs
    if ours and theirs and ours[0].rows == theirs[0].rows:
        return compare(ours, theirs, fixed=not other.rows), True
    few = any(side.rows and side.seeds < MIN_SEEDS for side in (line, other))
    one, two = _of_line(line), _of_line(other)
    if few or one is None or two is None:
        return Difference(line.mean - other.mean), False
    return unpaired(one, two), False


def _of_line(line: Line) -> Estimate | None:
    if line.rows:
        return _estimate(line.rows)
    if line.low is None or line.high is None:
        return None
    return Estimate(line.mean, ((line.high - line.low) / 2 / _HALF_WIDTH) ** 2, math.inf)


def _measured(rows: Sequence[Row], sources: Sources) -> tuple[Measured, ...] | None:
    """Each seed's predictions reduced to what a comparison needs.

    None where they are missing, do not give the row's score, or are of other examples.
    """
    by_seed = _grouped(rows, lambda row: row.seed)
    of_seeds = [[_run(row, sources[_place(row)]) for row in by_seed[seed]] for seed in sorted(by_seed)]
    measured = [[run for run in runs if run is not None] for runs in of_seeds]
    same = len({run.rows for runs in measured for run in runs}) == 1
    return tuple(map(average, measured)) if same and all(None not in runs for runs in of_seeds) else None


def _run(row: Row, source: TransferFile | None) -> Measured | None:
    try:
        stored = None if source is None else predictions_of(row, source)
        if stored is None:
            return None
        run = measure(metric(row.metric), stored.scores, stored.label, stored.group)
    except (UserError, IndexError, TypeError, ValueError):
        return None
    return run if agrees(row, run.value) else None
