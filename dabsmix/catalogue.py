"""What `dabsmix list` shows: every domain, algorithm and encoder, without importing torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dabsmix.model.shapes import ENCODERS, AnyConfig
from dabsmix.registry import algorithm_flags, algorithm_summary, algorithms, domains

if TYPE_CHECKING:
    from dabsmix.data.domain import Domain

__all__ = ["catalogue", "show"]


def catalogue(kind: str, root: Path) -> dict[str, list[dict[str, Any]]]:
    """Plain values, by kind. ``files`` says whether a domain's files are under the data root, or how to obtain them."""
    listed: dict[str, list[dict[str, Any]]] = {}
    if kind in ("all", "domains"):
        listed["domains"] = [
            {
                "name": card.name,
                "modality": card.modality,
                "sizes": card.sizes,
                "files": "here" if card.folder and card.complete(root) else _obtained(card),
                "licence": card.licence,
                "title": card.title + (f"; also {', '.join(card.aliases)}" if card.aliases else ""),
                "present": card.complete(root),
                "obtained": _obtained(card),
                "batch_size": card.batch_size,
                "folder": card.folder,
                "transfers": list(card.transfers),
                "aliases": list(card.aliases),
                "manual": card.manual,
            }
            for card in domains().values()
        ]
    if kind in ("all", "algorithms"):
        listed["algorithms"] = [
            {
                "name": name,
                "summary": algorithm_summary(name),
                "flags": {flag.name: flag.default for flag in algorithm_flags(name)},
            }
            for name in algorithms()
        ]
    if kind in ("all", "encoders"):
        listed["encoders"] = [{"name": name, **_shape(config)} for name, config in ENCODERS.items()]
    return listed


def _obtained(card: Domain) -> str:
    if not card.folder:
        return "embedded"
    if card.downloads:
        return "download"
    return "register" if card.manual.startswith("register") else "by hand"


def _shape(config: AnyConfig) -> dict[str, Any]:
    """The shape by field, and as one column for people."""
    fields = {name: value for name, value in asdict(config).items() if name not in ("attend_padding", "columns")}
    return {**fields, "shape": ", ".join(f"{name} {value}" for name, value in fields.items())}


HEADERS = {"sizes": "train / test"}
WIDE = {"licence": 3, "title": 4, "summary": 1, "shape": 1}
"""Relative widths of the columns that share what the others leave of the terminal's width."""

SHOWN = {
    "domains": ("name", "modality", "sizes", "files", "licence", "title"),
    "algorithms": ("name", "summary"),
    "encoders": ("name", "shape"),
}


def show(listed: dict[str, list[dict[str, Any]]]) -> None:
    """Print as tables, or as tab-separated lines if the output is not a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for kind, rows in listed.items():
        if not console.is_terminal:
            for row in rows:
                print(kind[:-1], *(row[column] for column in SHOWN[kind]), sep="\t")
            continue
        table = Table(title=kind, box=None, expand=True, title_justify="left", header_style="bold")
        for column in SHOWN[kind]:
            # at 120 characters long texts are cut; in a wider terminal none is
            table.add_column(HEADERS.get(column, column), no_wrap=True, overflow="ellipsis", ratio=WIDE.get(column))
        for row in rows:
            table.add_row(*(str(row[column]) for column in SHOWN[kind]))
        console.print(table)
