"""The leaderboard as a table: for a terminal, as Markdown or as CSV. `board.page` draws the same lines as a page."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dabsmix.board.averages import HEADINGS as AVERAGE_HEADINGS
from dabsmix.board.averages import TITLE as AVERAGED
from dabsmix.board.averages import Average, averages
from dabsmix.board.averages import cells as average_cells
from dabsmix.board.overview import OverviewColumn
from dabsmix.board.row import Row
from dabsmix.board.standings import Line, Ranking, Section, standings
from dabsmix.errors import UserError
from dabsmix.scoring.results import in_percent

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "HEADINGS",
    "Format",
    "cells",
    "failures",
    "label_text",
    "legend",
    "of_tasks",
    "place",
    "published",
    "render",
    "score_heading",
    "show",
    "title",
    "without_row",
]

Format = Literal["table", "md", "csv"]
HEADINGS = (
    *("probe", "labels", "algorithm", "budget", "FLOPs", "seeds", "score", "95 % interval", "test n"),
    *("groups", "features", "gain over none", "setting"),
)
PUBLISHED_COLUMNS = ("source", "protocol", "pretrain", "dataset", "method", "metric", "value", "std", "note")

_LEGEND = (
    "Score: mean ± standard deviation over seeds, and the 95 % interval of the mean over test examples (or their "
    "groups) and seeds. Budget: steps × batch and learning rate, and the FLOPs of the training's matrix products; only "
    "equal steps and batch are ranked together.",
    "Gain over none: difference from the random encoder with its 95 % interval; 'shown' where it holds at 5 % among "
    "all algorithms of the block (Holm), which takes 3 seeds on both sides.",
    "Features: how many numbers the probe read of each example, the most over seeds; more of them can raise a score "
    "whatever was learned.",
    "* : its lead over the random encoder, every yardstick and every other ranked algorithm is each significant at "
    "5 %; of several recipes of one algorithm the best needs a surer lead.",
    "Lines in [brackets] had augmentations or labels in pretraining and are not ranked; yardsticks come last.",
    "Error rates of these rules, by simulation: docs/evaluation.md.",
)


def render(
    rows: Iterable[Row],
    format: Format,
    published: Sequence[dict[str, str]] = (),
    failed: Sequence[dict[str, Any]] = (),
) -> str:
    """The leaderboard as text without terminal codes.

    Args:
        rows: as `board.read` gives them.
        format: ``table``, ``md`` or ``csv`` (fractions, not percent).
        published: numbers from papers (see `published`); those of the tasks shown go into a section of their own of
            the Markdown, because their protocols are not ours.
        failed: cells of a matrix that have no row (see `board.failures`); not in the CSV, whose lines are rows.
    """
    sections = standings(rows)
    if format == "csv":
        return _csv(sections)
    if format == "md":
        return _markdown(sections, of_tasks(published, sections), failed)
    from rich.console import Console

    out = StringIO()
    _print(sections, failed, Console(file=out, width=240, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def show(rows: Iterable[Row], failed: Sequence[dict[str, Any]] = ()) -> None:
    """Print the leaderboard: in colour and fitted to the terminal, or as plain text if the output is not a terminal."""
    import sys

    from rich.console import Console

    if sys.stdout.isatty():
        _print(standings(rows), failed, Console())
    else:
        sys.stdout.write(render(rows, "table", failed=failed))


def published(path: Path) -> list[dict[str, str]]:
    """Numbers from papers, one mapping per row of ``published.csv``; none where there is no such file.

    Raises:
        UserError: its header is broken.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != PUBLISHED_COLUMNS:
            raise UserError(f"{path}:1: broken header: it must read {','.join(PUBLISHED_COLUMNS)}")
        return list(reader)


def of_tasks(published: Sequence[dict[str, str]], sections: Sequence[Section]) -> list[dict[str, str]]:
    """The published numbers of the tasks shown."""
    tasks = {section.task for section in sections}
    return [number for number in published if number["dataset"] in tasks]


# --- what a table says, whatever it is drawn with


def place(of: Section | OverviewColumn) -> str:
    """What was scored on, after what was pretrained on where that is another data set."""
    return of.task if of.task == of.domain else f"{of.domain} → {of.task}"


def title(section: Section) -> str:
    """What the section's lines have in common."""
    return f"{place(section)} · encoder {section.encoder} · protocol {section.protocol} · data {section.data}"


def legend() -> tuple[str, ...]:
    """How to read a table."""
    return _LEGEND


def score_heading(section: Section) -> str:
    """The heading of the score's column."""
    names = dict.fromkeys(f"{b.metric}, %" if in_percent(b.metric) else b.metric for b in section.blocks)
    return " / ".join(names)


def cells(block: Ranking, line: Line) -> tuple[str, ...]:
    """A line in the order of `HEADINGS`."""
    scale, digits = (100, 1) if in_percent(block.metric) else (1, 4)
    spread = "" if line.std is None else f" ± {line.std * scale:.{digits}f}"
    interval = "–" if line.low is None or line.high is None else _range(line.low, line.high, scale, digits)
    return (
        block.probe,
        label_text(block.label_fraction),
        _name(line),
        line.budget or "–",
        _flops(line.flops),
        str(line.seeds) if line.seeds else "–",
        f"{line.mean * scale:.{digits}f}{spread}",
        interval,
        str(line.n),
        "" if line.groups is None else str(line.groups),
        "–" if line.num_features is None else str(line.num_features),
        _difference(line, scale, digits),
        line.setting,
    )


def failures(section: Section) -> list[str]:
    """One sentence for each algorithm, budget and reason with which runs of the section failed."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for row in section.failed:
        what = f"{row.algorithm} ({row.steps} × {row.batch_size}, lr {row.lr:g})"
        seeds.setdefault((what, row.failure), []).append(row.seed)
    return [
        f"Failed, without a score: {what}, seed{'s' * (len(failed) > 1)} {', '.join(map(str, sorted(failed)))}: {why}"
        for (what, why), failed in seeds.items()
    ]


def without_row(failed: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for each cell of a matrix that failed before it had a row."""
    return [
        f"Failed, without a row: {cell['domain']} {cell['algorithm']} seed {cell['seed']}, {cell['encoder']}: "
        f"{cell['reason']} ({cell['date']})"
        for cell in failed
    ]


def _flops(count: float | None) -> str:
    """Two digits and a power of ten."""
    return "–" if count is None else "0" if count == 0 else f"{count:.1e}".replace("e+", "e")


def label_text(fraction: str) -> str:
    """A share of the labels as tables write it."""
    if fraction.endswith("/class"):
        return fraction.replace("/", " per ")
    return "all" if float(fraction) == 1 else f"{float(fraction) * 100:g} %"


def _name(line: Line) -> str:
    if line.part == "apart":
        return f"[{line.name}: {line.marks}]"
    return f"* {line.name}" if line.best else line.name


def _range(low: float, high: float, scale: int, digits: int) -> str:
    return f"{low * scale:.{digits}f} to {high * scale:.{digits}f}"


def _difference(line: Line, scale: int, digits: int) -> str:
    if line.against is None:
        return ""
    against = line.against
    number = f"{against.difference * scale:+.{digits}f}"
    if against.low is not None and against.high is not None:
        number += f" ({against.low * scale:+.{digits}f} to {against.high * scale:+.{digits}f})"
    return f"{number}, shown" if against.shown else number


# --- terminal and plain text


def _print(sections: list[Section], failed: Sequence[dict[str, Any]], console: Any) -> None:
    if not sections:
        console.print("The leaderboard is empty: dabsmix submit --run DIR --by NAME")
    for section in sections:
        console.print(_rich(section))
        for note in (*failures(section), *section.notes):
            console.print(f"  {note}", markup=False, highlight=False)
        console.print()
    if complete := averages(sections):
        console.print(_rich_averages(complete))
    for line in without_row(failed):
        console.print(line, markup=False, highlight=False)
    for line in legend() if sections else ():
        console.print(line, markup=False, highlight=False)


def _rich(section: Section) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title(section)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    numbers = ("FLOPs", "seeds", "score", "95 % interval", "test n", "groups", "features")
    columns = HEADINGS if any(line.setting for block in section.blocks for line in block.lines) else HEADINGS[:-1]
    for heading in columns:
        shown = score_heading(section) if heading == "score" else heading
        table.add_column(shown, justify="right" if heading in numbers else "left", overflow="fold")
    for block in section.blocks:
        for i, line in enumerate(block.lines):
            style = {"ranked": "bold" if line.best else "", "apart": "italic", "yardstick": "dim"}[line.part]
            row = [Text(cell) for cell in cells(block, line)[: len(columns)]]
            table.add_row(*(row if i == 0 else [Text(""), Text(""), *row[2:]]), style=style)
        table.add_section()
    return table


def _rich_averages(complete: Sequence[Average]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=AVERAGED, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading in AVERAGE_HEADINGS:
        table.add_column(heading, overflow="fold")
    for average in complete:
        table.add_row(*(Text(cell) for cell in average_cells(average)))
    return table


# --- Markdown and CSV


def _markdown(sections: list[Section], papers: Sequence[dict[str, str]], failed: Sequence[dict[str, Any]]) -> str:
    parts = ["# Leaderboard", ""]
    for section in sections:
        headings = [score_heading(section) if heading == "score" else heading for heading in HEADINGS]
        lines = [cells(block, line) for block in section.blocks for line in block.lines]
        parts += [f"## {_escaped(title(section))}", "", *_grid(headings, lines), ""]
        notes = (*failures(section), *section.notes)
        parts += [f"- {_escaped(note)}" for note in notes] + [""] * bool(notes)
    if complete := averages(sections):
        parts += [f"## {AVERAGED}", "", *_grid(AVERAGE_HEADINGS, [average_cells(average) for average in complete]), ""]
    parts += [*(f"- {_escaped(line)}" for line in without_row(failed)), *[""] * bool(failed)]
    parts += ["## How to read", "", *(f"- {_escaped(line)}" for line in legend()), ""]
    if papers:
        parts += ["## Published numbers", "", "From papers, under their own protocols; never ranked with ours.", ""]
        parts += [*_grid(PUBLISHED_COLUMNS, [[number[name] for name in PUBLISHED_COLUMNS] for number in papers]), ""]
    return "\n".join(parts)


def _grid(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rows = [list(headings), ["---"] * len(headings), *([_escaped(cell) for cell in line] for line in lines)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\|*_<[`":
        text = text.replace(character, f"\\{character}" if character != "<" else "&lt;")
    return " ".join(text.split())


def _csv(sections: list[Section]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    of_line = ("name", "part", "marks", "setting", "seeds", "mean", "std", "low", "high", "n", "best")
    added = ("groups", "budget", "flops", "num_features")
    of_against = ("difference", "low", "high", "paired", "shown")
    of_section = ("domain", "task", "encoder", "protocol", "data")
    of_block = ("probe", "label_fraction", "metric")
    header = [*of_section, *of_block, *of_line, *(f"against_{name}" for name in of_against), *added]
    writer.writerow(header)
    for section in sections:
        for block in section.blocks:
            for line in block.lines:
                sources: list[tuple[Any, tuple[str, ...]]] = [(section, of_section), (block, of_block), (line, of_line)]
                values = [getattr(source, name) for source, names in sources for name in names]
                values += [getattr(line.against, name, None) for name in of_against]
                values += [getattr(line, name) for name in added]
                writer.writerow([_plain(value) for value in values])
        for row in section.failed:
            values = [
                *(getattr(section, name) for name in of_section),
                "",
                "",
                "",
                row.algorithm,
                "failed",
                row.failure,
            ]
            writer.writerow([*values, *[""] * (len(header) - len(values))])
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return round(value, 6) if isinstance(value, float) else value
