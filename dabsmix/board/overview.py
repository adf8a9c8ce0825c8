"""Which algorithm learns good features without augmentations: each one's gain over the random encoder, at a glance.

A matrix of algorithms by data sets from the blocks of `standings`, so that a column holds equal budgets alone; then,
per modality and over all, what `gains` computes for algorithms that have the same columns with three seeds or more.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from io import StringIO
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.board.gains import RESAMPLES, Aggregate, Gains, aggregate, best_score, normalised_gains
from dabsmix.board.record import UNREADABLE, stamp
from dabsmix.board.row import COLUMNS, Row
from dabsmix.board.standings import Line, Ranking, Section, by_section, is_random, section_of
from dabsmix.files import memory, remember
from dabsmix.scoring.intervals import MIN_SEEDS
from dabsmix.scoring.results import in_percent

__all__ = [
    "Overview",
    "OverviewCell",
    "OverviewColumn",
    "as_plain",
    "cell_text",
    "gain_text",
    "overviews",
    "text",
    "without_text",
]


@dataclass(frozen=True)
class OverviewColumn:
    """One block: a data set, its metric, and the random encoder's score there; None if it was not run.

    A column in which every run failed has no metric.
    """

    domain: str
    task: str
    modality: str
    metric: str
    budget: str
    none: float | None


@dataclass(frozen=True)
class OverviewCell:
    """One algorithm in one column, in the metric's unit.

    Attributes:
        score: None if every run failed. ``gain`` is also None if there is no random encoder.
        shown: whether the gain is shown at 5 %.
        seeds: of the score; ``failed`` is how many runs have none.
    """

    score: float | None
    gain: float | None
    low: float | None
    high: float | None
    shown: bool
    seeds: int
    failed: int = 0


@dataclass(frozen=True)
class Overview:
    """All data sets of one encoder, protocol, probe and share of the labels.

    Attributes:
        columns: by modality and name.
        cells: one row for each of ``algorithms``, one entry for each column, None where it was not run.
        aggregates: by modality and ``all``, of algorithms that have the same columns, at least three seeds in each.
            Empty if no column has three seeds of an algorithm and of the random encoder.
        over: how many columns each aggregate is over.
        without: algorithms that lack some of these columns and are therefore in no aggregate, with how many they have.
    """

    encoder: str
    protocol: str
    probe: str
    label_fraction: str
    columns: tuple[OverviewColumn, ...]
    algorithms: tuple[str, ...]
    cells: tuple[tuple[OverviewCell | None, ...], ...]
    aggregates: dict[str, tuple[Aggregate, ...]]
    over: dict[str, int]
    without: dict[str, int]


def overviews(
    rows: Iterable[Row],
    modality: Callable[[str], str],
    *,
    probe: str = "linear",
    label_fraction: str = "1",
    processes: int = 1,
) -> list[Overview]:
    """One overview for each encoder and protocol, the fullest first; lines apart (augmentations, labels) are left out.

    Args:
        rows: of the leaderboard.
        modality: of a domain.
        probe, label_fraction: which scores.
        processes: how many may share the reading of many records.
    """
    shown = [row for row in rows if row.failure or (row.probe, row.label_fraction) == (probe, label_fraction)]
    parts = [
        part
        for of_section in _of_sections(by_section(shown), f"{probe} {label_fraction}", processes)
        for part in of_section
    ]
    modalities = {domain: modality(domain) for domain in dict.fromkeys(part.column.domain for part in parts)}
    groups: dict[tuple[str, str], list[_Part]] = {}
    for part in parts:
        column = replace(part.column, modality=modalities[part.column.domain])
        groups.setdefault((part.encoder, part.protocol), []).append(replace(part, column=column))
    results = [_overview(of_group, probe, label_fraction) for _, of_group in sorted(groups.items())]
    return sorted(results, key=lambda overview: -sum(cell is not None for row in overview.cells for cell in row))


def as_plain(all_overviews: Sequence[Overview]) -> list[dict[str, Any]]:
    """JSON values."""
    return [asdict(overview) for overview in all_overviews]


# --- one block


@dataclass(frozen=True)
class _Part:
    """What the overview takes from one block. It follows from the rows of a section, their records and this code alone.

    Attributes:
        column: its modality is left empty, because the caller of `overviews` names it.
        cells: by algorithm.
        gains: by algorithm, of those with enough seeds; None if the column enters no aggregate: too few seeds of the
            random encoder, or nothing to gain.
    """

    encoder: str
    protocol: str
    column: OverviewColumn
    cells: Mapping[str, OverviewCell]
    gains: Mapping[str, Gains] | None


def _parts(rows: list[Row]) -> list[_Part]:
    """Of one section, see `by_section`."""
    section = section_of(rows, for_overview=True)
    return [_part(section, block) for block in (*section.blocks, *_without_lines(section))]


def _without_lines(section: Section) -> list[Ranking]:
    """A block without lines for each budget with which every run failed."""
    scored = {block.budget for block in section.blocks}
    budgets = dict.fromkeys(budget for _, budget in section.failures())
    return [Ranking("", "", "", (), budget) for budget in budgets if budget not in scored]


def _part(section: Section, block: Ranking) -> _Part:
    best, random = _best(block), _random(block)
    failed = {name: count for (name, budget), count in section.failures().items() if budget == block.budget}
    none = None if random is None else random.mean
    # the budget is steps and batch; each algorithm has its own rate
    column = OverviewColumn(section.domain, section.task, "", block.metric, block.budget, none)
    cells = {name: _cell(best.get(name), failed.get(name, 0)) for name in (*best, *failed)}
    gains = None
    if random and random.seeds >= MIN_SEEDS and random.mean != best_score(block.metric):
        enough = {name: line for name, line in best.items() if line.seeds >= MIN_SEEDS}
        place = f"{section.domain}\n{section.task}\n{block.budget}"
        gains = normalised_gains(block.metric, enough, random, column=place)
    return _Part(section.encoder, section.protocol, column, cells, gains)


def _best(block: Ranking) -> dict[str, Line]:
    """Of each ranked algorithm the recipe with the most seeds: which one must not depend on the score."""
    lines: dict[str, Line] = {}
    for line in sorted(block.lines, key=lambda line: (-line.seeds, line.setting)):
        if line.part == "ranked":
            lines.setdefault(line.name, line)
    return lines


def _random(block: Ranking) -> Line | None:
    lines = [line for line in block.lines if is_random(line)]
    return max(lines, key=lambda line: line.seeds, default=None)


def _cell(line: Line | None, failed: int) -> OverviewCell:
    if line is None:
        return OverviewCell(None, None, None, None, False, 0, failed)
    against = line.against
    if against is None:
        return OverviewCell(line.mean, None, None, None, False, line.seeds, failed)
    return OverviewCell(line.mean, against.difference, against.low, against.high, against.shown, line.seeds, failed)


# --- what is remembered of the blocks


def _of_sections(sections: Sequence[list[Row]], scores: str, processes: int) -> list[list[_Part]]:
    """The parts of each section; those of a section whose rows and records have not changed are recalled.

    The memory lies in the user's own cache, never beside the records: one file for each board and choice of scores.
    """
    if not sections:
        return []
    board = sections[0][0].record.parent.absolute()
    name = f"overview-{hashlib.sha256(f'{board} {scores}'.encode()).hexdigest()[:16]}"
    keys, known = [_key(rows) for rows in sections], _recall(name)
    new = [rows for rows, key in zip(sections, keys, strict=True) if key not in known]
    if processes > 1 and sum(map(len, new)) > MANY:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            made = iter(list(pool.map(_parts, new)))
    else:
        made = map(_parts, new)
    parts = [known[key] if key in known else next(made) for key in keys]
    if new or len(known) > len(sections):
        remember(
            name,
            lambda path: _save(path, {key: of_section for key, of_section in zip(keys, parts, strict=True) if key}),
        )
    return parts


MANY = 2000  # rows: the records of fewer are read sooner than a process starts
_CELLS = attrgetter(*COLUMNS)


def _key(rows: Sequence[Row]) -> str:
    """Hex sha256 of the rows and of the stamps of their records; empty where a record cannot be read."""
    stamps = [stamp(record) for record in dict.fromkeys(row.record for row in rows)]
    return "" if None in stamps else hashlib.sha256(repr((list(map(_CELLS, rows)), stamps)).encode()).hexdigest()


def _save(path: Path, parts: Mapping[str, Sequence[_Part]]) -> None:
    """An ``.npz`` of the resampled gains, one after the other, and of everything else as JSON text."""
    text = json.dumps({key: list(map(_as_plain, of_section)) for key, of_section in parts.items()})
    gains = [gain for of_section in parts.values() for part in of_section for gain in (part.gains or {}).values()]
    resampled = np.concatenate([np.empty(0), *(gain.resampled.ravel() for gain in gains)])
    with path.open("wb") as file:
        np.savez(file, text=np.frombuffer(text.encode(), np.uint8), resampled=resampled)


def _recall(name: str) -> dict[str, list[_Part]]:
    """What `_save` wrote, by `_key`; empty where nothing readable is remembered."""
    try:
        with np.load(memory(name), allow_pickle=False) as arrays:
            plain, resampled = json.loads(arrays["text"].tobytes()), arrays["resampled"]
        of_parts = (part["gains"] or {} for of_section in plain.values() for part in of_section)
        lengths = [RESAMPLES * len(measured) for of_part in of_parts for measured, _ in of_part.values()]
        pieces = iter(np.split(resampled, np.cumsum(lengths, dtype=int)))
        return {key: [_from_plain(part, pieces) for part in of_section] for key, of_section in plain.items()}
    except (*UNREADABLE, LookupError, AttributeError):
        return {}


def _as_plain(part: _Part) -> dict[str, Any]:
    """JSON values of all but the resampled gains."""
    plain = vars(part) | {"column": asdict(part.column)}
    plain["cells"] = {name: asdict(cell) for name, cell in part.cells.items()}
    if part.gains is not None:
        plain["gains"] = {name: [gain.measured.tolist(), gain.improvement] for name, gain in part.gains.items()}
    return plain


def _from_plain(plain: Mapping[str, Any], resampled: Iterator[NDArray[np.float64]]) -> _Part:
    """From those of `_as_plain` and the resampled gains in their order."""
    values = {**plain, "column": OverviewColumn(**plain["column"])}
    values["cells"] = {name: OverviewCell(**cell) for name, cell in plain["cells"].items()}
    if plain["gains"] is not None:
        values["gains"] = {
            name: Gains(np.array(measured), next(resampled).reshape(RESAMPLES, len(measured)), improvement)
            for name, (measured, improvement) in plain["gains"].items()
        }
    return _Part(**values)


# --- all blocks of one encoder and protocol


def _overview(parts: list[_Part], probe: str, label_fraction: str) -> Overview:
    parts.sort(key=lambda part: (part.column.modality, part.column.domain, part.column.task, part.column.budget))
    columns = tuple(part.column for part in parts)
    names = tuple(sorted({name for part in parts for name in part.cells}))
    scored = sorted({name for part in parts for name, cell in part.cells.items() if cell.score is not None})
    cells = tuple(tuple(part.cells.get(name) for part in parts) for name in names)
    common, compared = _complete(_one_budget(parts))
    parts_of = {"all": common}
    for kind in dict.fromkeys(column.modality for column in columns):
        parts_of[kind] = [part for part in common if part.column.modality == kind]
    aggregates = {
        kind: tuple(aggregate(name, [part.gains[name] for part in of_kind if part.gains]) for name in compared)
        for kind, of_kind in parts_of.items()
        if of_kind
    }
    over = {kind: len(of_kind) for kind, of_kind in parts_of.items() if of_kind}
    left_out = [name for name in scored if name not in compared]
    without = {name: sum(name in (part.gains or {}) for part in common) for name in left_out if common}
    first = parts[0]
    return Overview(
        first.encoder, first.protocol, probe, label_fraction, columns, names, cells, aggregates, over, without
    )


def _one_budget(parts: Sequence[_Part]) -> list[_Part]:
    """Of several budgets of a data set and task the one with the most algorithms, of equals the first."""
    best: dict[tuple[str, str], _Part] = {}
    for part in parts:
        place = (part.column.domain, part.column.task)
        if place not in best or len(part.gains or {}) > len(best[place].gains or {}):
            best[place] = part
    return list(best.values())


def _complete(parts: Sequence[_Part]) -> tuple[list[_Part], list[str]]:
    """Columns and algorithms of which each has all of the other.

    Whichever column or algorithm lacks the greatest share is left out, of equals the algorithm, one after the other, so
    that neither a new algorithm with one data set nor a new data set with one algorithm takes away what the others have
    in common.
    """
    columns = [set(part.gains) for part in parts if part.gains]
    names = sorted(set().union(*columns))
    while columns and names:
        of_name = [fmean(name in column for column in columns) for name in names]
        of_column = [fmean(name in column for name in names) for column in columns]
        if min(of_name) == min(of_column) == 1:
            break
        if min(of_name) <= min(of_column):
            del names[of_name.index(min(of_name))]
        else:
            del columns[of_column.index(min(of_column))]
    return [part for part in parts if names and set(names) <= set(part.gains or {})], names


# --- as text


def text(all_overviews: Sequence[Overview], width: int = 240) -> str:
    """The overviews as plain tables.

    Args:
        all_overviews: as `overviews` gives them.
        width: characters in a line; a table of more columns than fit goes on below.
    """
    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False)
    for overview in all_overviews:
        _print(overview, console)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n" if all_overviews else ""


def _print(overview: Overview, console: Any) -> None:
    labels = "all labels" if overview.label_fraction == "1" else f"labels {overview.label_fraction}"
    setting = f"encoder {overview.encoder} · protocol {overview.protocol} · {overview.probe} probe · {labels}"
    console.print(f"Gain over none · {setting}", markup=False, highlight=False)
    rest = list(range(len(overview.columns)))
    while True:
        fitting = max(1, sum(_table(overview, rest[: n + 1], console)[1] <= console.width for n in range(len(rest))))
        console.print(_table(overview, rest[:fitting], console)[0])
        rest = rest[fitting:]
        if not rest:
            break
    for kind, aggregates in overview.aggregates.items():
        over = f"{overview.over[kind]} data set{'s' * (overview.over[kind] != 1)}"
        console.print(f"  {kind}, over {over}: interquartile mean of normalised gains", markup=False)
        for over_all in sorted(aggregates, key=lambda a: -a.mean):
            console.print(
                f"    {over_all.algorithm:<12} {100 * over_all.mean:+6.1f} "
                f"({100 * over_all.low:+.1f} to {100 * over_all.high:+.1f}) %, "
                f"probability of improvement {over_all.improvement:.2f}",
                markup=False,
                highlight=False,
            )
    if overview.without:
        console.print(f"  not in these: {without_text(overview)}", markup=False, highlight=False)
    if not overview.aggregates and overview.algorithms:
        console.print("  No aggregate: no data set has an algorithm and none with 3 seeds each.", markup=False)
    console.print(
        "  * shown at 5 % (Holm, within the column); – not run; failed: no run has a score.",
        markup=False,
        highlight=False,
    )
    console.print()


def _table(overview: Overview, places: Sequence[int], console: Any) -> tuple[Any, int]:
    """The columns at these places, and how wide they are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = [overview.columns[place] for place in places]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("algorithm", no_wrap=True)
    for column in columns:
        place = column.task if column.task == column.domain else f"{column.domain} → {column.task}"
        table.add_column(Text(f"{place}\n{column.modality}\n{column.budget}"), justify="right")
    table.add_row("none", *(cell_text(column.metric, column.none, None) for column in columns), style="dim")
    for name, cells in zip(overview.algorithms, overview.cells, strict=True):
        gains = (gain_text(column.metric, cells[place]) for column, place in zip(columns, places, strict=True))
        table.add_row(Text(name), *gains)
    # wider than any console, or the measure would end at its edge
    return table, console.measure(table, options=console.options.update(max_width=10_000)).maximum


def without_text(overview: Overview) -> str:
    """The algorithms that are in no aggregate, with how many of its data sets they have."""
    return ", ".join(
        f"{name} (has {count} of {overview.over['all']} data sets)" for name, count in overview.without.items()
    )


def cell_text(name: str, value: float | None, sign: str | None) -> str:
    """A score in percent where it is a share."""
    if value is None or math.isnan(value):
        return "–"
    scale, digits = (100, 1) if in_percent(name) else (1, 4)
    return f"{value * scale:{sign or ''}.{digits}f}"


def gain_text(name: str, cell: OverviewCell | None) -> str:
    """A gain with its interval; starred where it is shown; the bare score without a random encoder."""
    if cell is None:
        return "–"
    if cell.score is None:
        return "failed"
    number = f"({cell_text(name, cell.score, None)})"
    if cell.gain is not None:
        number = cell_text(name, cell.gain, "+") + "*" * cell.shown
    if cell.low is not None and cell.high is not None:
        number += f" ({cell_text(name, cell.low, '+')} to {cell_text(name, cell.high, '+')})"
    return number + f", {cell.failed} failed" * bool(cell.failed)
