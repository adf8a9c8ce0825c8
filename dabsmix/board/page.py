"""The leaderboard as one page: a template beside this file, nothing fetched, all scores readable without its script."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dabsmix.board import averages
from dabsmix.board.gains import Aggregate
from dabsmix.board.overview import Overview, cell_text, gain_text, overviews, without_text
from dabsmix.board.record import shares
from dabsmix.board.row import Row
from dabsmix.board.standings import Line, Ranking, Section, standings
from dabsmix.board.table import HEADINGS, PUBLISHED_COLUMNS, cells, label_text, legend, of_tasks, place, without_row
from dabsmix.scoring.results import in_percent

__all__ = ["page"]

COLUMNS = (
    *("data set", "probe", "labels", "algorithm", "metric", "score", "95 % interval", "gain over none", "seeds"),
    *("budget", "FLOPs", "test n", "groups", "features", "protocol", "encoder", "setting"),
)
FILTERS = ("modality", "data set", "protocol", "probe", "labels", "encoder")
NUMBERS = ("FLOPs", "seeds", "score", "95 % interval", "test n", "groups", "features", "gain over none")


def page(
    rows: Iterable[Row],
    published: Sequence[dict[str, str]] = (),
    modality: Callable[[str], str] = lambda domain: "other",
    failed: Sequence[dict[str, Any]] = (),
    *,
    probe: str = "linear",
    label_fraction: str = "1",
) -> str:
    """The page. Links to records are relative: it belongs beside ``results.csv``.

    Args:
        rows: of the leaderboard.
        published: numbers from papers; those of the tasks shown go into a section of their own.
        modality: of a domain.
        failed: cells of a matrix that have no row, see `board.failures`.
        probe, label_fraction: whose scores the overview shows.
    """
    from jinja2 import Environment

    rows = list(rows)
    sections = standings(rows)
    lines = [
        _line(section, block, line, modality(section.domain))
        for section in sections
        for block in section.blocks
        for line in block.lines
    ]
    template = Environment(autoescape=True).from_string(Path(__file__).with_suffix(".html").read_text("utf-8"))
    return template.render(
        overviews=[
            _overview(overview) for overview in overviews(rows, modality, probe=probe, label_fraction=label_fraction)
        ],
        lines=lines,
        failed=[(place(section), _failed(row)) for section in sections for row in section.failed],
        without_row=without_row(failed),
        averages=[averages.cells(average) for average in averages.averages(sections)],
        averages_title=averages.TITLE,
        averages_headings=averages.HEADINGS,
        filters={name: list(dict.fromkeys(line["data"][name] for line in lines)) for name in FILTERS},
        headings=[{"text": name, "css": "number" if name in NUMBERS else ""} for name in COLUMNS],
        legend=legend(),
        notes=list(dict.fromkeys(f"{place(section)}: {note}" for section in sections for note in section.notes)),
        published=of_tasks(published, sections),
        published_columns=PUBLISHED_COLUMNS,
        # no "<" in a script's text: a name could close it
        data=Markup(json.dumps({"lines": [line["data"] for line in lines]}).replace("<", "\\u003c")),
    )


def _line(section: Section, block: Ranking, line: Line, modality: str) -> dict[str, Any]:
    """What the template and its script need of one line."""
    labels = label_text(block.label_fraction)
    texts = dict(zip(HEADINGS, cells(block, line), strict=True)) | {
        "data set": place(section),
        "metric": f"{block.metric}, %" if in_percent(block.metric) else block.metric,
        "protocol": section.protocol,
        "encoder": section.encoder,
    }
    values: dict[str, float | None] = {
        "FLOPs": line.flops,
        "seeds": line.seeds,
        "score": line.mean,
        "95 % interval": line.low,
        "test n": line.n,
        "groups": line.groups,
        "features": line.num_features,
        "gain over none": None if line.against is None else line.against.difference,
        "labels": _share(block.label_fraction),
    }
    css = {"algorithm": "name", "setting": "wrap"} | dict.fromkeys(NUMBERS, "number")
    return {
        "css": f"{line.part}{' best' if line.best else ''}",
        "cells": [
            {"text": texts[name], "value": _sorted_by(values.get(name, texts[name])), "css": css.get(name, "")}
            for name in COLUMNS
        ],
        "runs": line.rows,
        "data": {
            "modality": modality,
            **{name: texts[name] for name in ("data set", "protocol", "encoder")},
            "probe": block.probe,
            "labels": labels,
            "algorithm": line.name,
            "budget": block.budget if line.rows else "",
            "section": f"{texts['data set']}, {block.metric}, {section.encoder}, {section.protocol}",
            "share": _share(block.label_fraction) if line.rows else None,
            "score": line.mean,
            "low": line.low,
            "high": line.high,
            "flops": line.flops,
            "runs": [_run(row) for row in line.rows],
        },
    }


def _failed(row: Row) -> dict[str, str]:
    """What the page says of a failed run."""
    return {
        "algorithm": row.algorithm,
        "seed": f"{row.seed}",
        "budget": f"{row.steps} × {row.batch_size}, lr {row.lr:g}",
        "protocol": row.protocol,
        "encoder": row.encoder,
        "submitted": f"{row.by}, {row.date}",
        "reason": row.failure,
        "record": row.run,
    }


def _sorted_by(value: float | str | None) -> float | str:
    return "" if value is None else value


def _share(label_fraction: str) -> float:
    """In the order of the number of labels: so many of each class first, then shares of all."""
    number, per, _ = label_fraction.partition("/")
    return float(number) * (1e-9 if per else 1)


def _run(row: Row) -> dict[str, str]:
    """The provenance of one seed's score, in the words of the CSV's columns."""
    interval = "" if row.low is None or row.high is None else f" ({row.low:g} to {row.high:g})"
    values = {
        "record": row.run,
        "seed": f"{row.seed}",
        row.metric: f"{row.value:g}{interval}",
        "submitted": f"{row.by}, {row.date}",
        "pretraining": f"{row.steps} steps of {row.batch_size}, lr {row.lr:g}, {row.precision}, {row.hyper}",
        "device": f"{row.device}, {row.seconds:g} s",
        "code": f"{row.version}, commit {row.commit or 'unknown'}",
        "config hash": row.config_hash,
        "encoder sha256": row.encoder_sha256,
        "data fingerprint": row.data_fingerprint,
        "labels asked for": ", ".join(label_text(share) for share in shares(row)),
        "test reads": f"{row.test_reads}",
    }
    return {name: value for name, value in values.items() if value}


def _overview(overview: Overview) -> dict[str, Any]:
    """Texts of the overview."""

    def cell(column: Any, gain: Any) -> dict[str, str]:
        text, _, interval = gain_text(column.metric, gain).partition(" (")
        up = gain is not None and gain.gain is not None and gain.gain > 0
        missing = gain is None or gain.score is None
        css = "missing" if missing else ("shown up" if up else "shown down") if gain.shown else ""
        return {"gain": text, "interval": interval.replace(")", ""), "css": css}

    return {
        "encoder": overview.encoder,
        "protocol": overview.protocol,
        "probe": overview.probe,
        "labels": "all labels" if overview.label_fraction == "1" else f"labels {label_text(overview.label_fraction)}",
        "columns": [
            {
                "place": place(column),
                "modality": column.modality,
                "budget": column.budget,
                "none": cell_text(column.metric, column.none, None),
            }
            for column in overview.columns
        ],
        "rows": [
            {"name": name, "cells": [cell(*pair) for pair in zip(overview.columns, of_algorithm, strict=True)]}
            for name, of_algorithm in zip(overview.algorithms, overview.cells, strict=True)
        ],
        "aggregates": _aggregates(overview),
    }


def _aggregates(overview: Overview) -> dict[str, Any]:
    """Texts of the aggregates: a column for each kind of data, a row for each algorithm, the best over all first."""
    by_kind = {kind: {one.algorithm: one for one in of_kind} for kind, of_kind in overview.aggregates.items()}
    order = sorted(by_kind.get("all", {}).values(), key=lambda aggregate: -aggregate.mean)

    def cell(aggregate: Aggregate) -> dict[str, str]:
        return {
            "mean": f"{100 * aggregate.mean:+.1f}",
            "interval": f"{100 * aggregate.low:+.1f} to {100 * aggregate.high:+.1f}",
            "improvement": "–" if math.isnan(aggregate.improvement) else f"{aggregate.improvement:.2f}",
        }

    return {
        "kinds": [{"name": kind, "over": overview.over[kind]} for kind in by_kind],
        "rows": [
            {"name": one.algorithm, "cells": [cell(by_kind[kind][one.algorithm]) for kind in by_kind]} for one in order
        ],
        "without": without_text(overview),
    }
