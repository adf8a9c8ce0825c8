"""The leaderboard as one page: no script, nothing fetched, light or dark as the reader's system is."""

from collections.abc import Iterable, Sequence
from html import escape

from dabsmix.board.row import Row
from dabsmix.board.standings import YARDSTICKS, Block, Line, Section, standings
from dabsmix.board.table import HEADINGS, PUBLISHED_COLUMNS, cells, legend, of_tasks, score_heading, title

__all__ = ["page"]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #fff; --rule: #d9dee4; --band: #f4f6f8;
  --best: #0b6e4f; --apart: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --paper: #14181c; --rule: #323a42;
  --band: #1c2228; --best: #5fd3a8; --apart: #e3b25c; } }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: baseline; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--rule); color: var(--soft); font-weight: 600; }
tbody { border-bottom: 1px solid var(--rule); }
tbody th { font-weight: 600; }
td.number, th.number { text-align: right; }
.published td { white-space: normal; }
td.wrap { white-space: normal; min-width: 16rem; }
tr.yardstick { color: var(--soft); background: var(--band); }
tr.apart { color: var(--apart); font-style: italic; }
tr.best td:first-of-type { color: var(--best); font-weight: 700; }
svg { width: 120px; height: 12px; vertical-align: middle; stroke: currentColor; fill: currentColor; }
ul, details { color: var(--soft); } a { color: inherit; }
"""
_NUMBERS = ("seeds", "score", "95 % interval", "test n", "groups")


def page(rows: Iterable[Row], published: Sequence[dict[str, str]] = ()) -> str:
    """The page. Links to records are relative: it belongs beside ``results.csv``."""
    sections = standings(rows)
    published = of_tasks(published, sections)
    body = [part for section in sections for part in _section(section)]
    if not sections:
        body = ["<p>The leaderboard is empty.</p>"]
    if published:
        body += ["<h2>Published numbers</h2>", "<p>From papers, under their own protocols; never ranked with ours.</p>"]
        papers = "".join(f"<tr>{''.join(_cell(each[name]) for name in PUBLISHED_COLUMNS)}</tr>" for each in published)
        heads = "".join(f"<th>{name}</th>" for name in PUBLISHED_COLUMNS)
        body.append(
            f'<div class="scroll published"><table><thead><tr>{heads}</tr></thead><tbody>{papers}</tbody></table></div>'
        )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>dabsmix leaderboard</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            "<h1>dabsmix leaderboard</h1>",
            f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in legend())}</ul>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def _section(section: Section) -> list[str]:
    headings = [score_heading(section) if heading == "score" else heading for heading in HEADINGS]
    classes = ["number" if heading in _NUMBERS else "" for heading in HEADINGS]
    heads = [f'<th class="{name}">{escape(text)}</th>' for name, text in zip(classes, headings, strict=True)]
    heads.insert(HEADINGS.index("95 % interval"), "<th></th>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in section.notes)
    runs = {row.run: row.by for block in section.blocks for line in block.lines for row in line.rows}
    links = "".join(
        f'<li><a href="runs/{escape(run)}/">{escape(run)}</a>, {escape(by)}</li>' for run, by in runs.items()
    )
    return [
        f"<h2>{escape(title(section))}</h2>",
        f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead>',
        *(_block(block) for block in section.blocks),
        "</table></div>",
        f"<ul>{notes}</ul>" if notes else "",
        f"<details><summary>Records of these {len(runs)} runs</summary><ul>{links}</ul></details>",
    ]


def _block(block: Block) -> str:
    drawn = [line for line in block.lines if line.name != YARDSTICKS["majority"]]  # far off, it would squeeze the rest
    ends = [end for line in drawn for end in (line.low, line.high, line.mean) if end is not None]
    rows = []
    for i, line in enumerate(block.lines):
        texts = cells(block, line)
        whisker = _whisker(line, min(ends), max(ends)) if line in drawn else ""
        row = [f"<th>{escape(text if i == 0 else '')}</th>" for text in texts[:2]]
        row += [_cell(text, heading) for heading, text in zip(HEADINGS[2:], texts[2:], strict=True)]
        row.insert(HEADINGS.index("95 % interval"), f"<td>{whisker}</td>")
        rows.append(f'<tr class="{line.part}{" best" if line.best else ""}">{"".join(row)}</tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def _cell(text: str, heading: str = "") -> str:
    name = "number" if heading in _NUMBERS else "wrap" if heading in ("setting", "gain over none") else ""
    return f'<td class="{name}">{escape(text)}</td>'


def _whisker(line: Line, least: float, most: float) -> str:
    """The score and its interval on the block's common scale."""
    ends = (line.mean if line.low is None else line.low, line.mean if line.high is None else line.high, line.mean)
    low, high, mean = (4 + 112 * (end - least) / (most - least or 1) for end in ends)
    bar = f'<line x1="{low:.1f}" x2="{high:.1f}" y1="6" y2="6"/><circle cx="{mean:.1f}" cy="6" r="3"/>'
    return f'<svg viewBox="0 0 120 12" aria-hidden="true">{bar}</svg>'
