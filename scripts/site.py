"""The documentation as static pages: the README and the guides, the tour, and beside them the API by pdoc.

    pip install 'dabsmix[docs]' && python scripts/site.py site

A link to a file that is not in the repository ends the build.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path

import markdown2
import pdoc
from jinja2 import Template
from markupsafe import Markup

REPOSITORY = Path(__file__).resolve().parent.parent

PAGES = {
    "README.md": ("index.html", "dabsmix"),
    "docs/tour.ipynb": ("tour.html", "Tour"),
    "docs/own-data.md": ("own-data.html", "Your own data"),
    "docs/algorithms.md": ("algorithms.html", "Algorithms"),
    "docs/evaluation.md": ("evaluation.html", "Evaluation"),
    "docs/clusters.md": ("clusters.html", "Clusters"),
    "docs/benchmarks.md": ("benchmarks.html", "Benchmarks"),
    "leaderboard/README.md": ("leaderboard.html", "Leaderboard"),
    "CONTRIBUTING.md": ("contributing.html", "Contributing"),
    "CHANGELOG.md": ("changelog.html", "Changelog"),
}
"""Those of the menu, in its order; further guides in docs/ follow from their names."""

PICTURES = (".png", ".svg")

EXTRAS = ["fenced-code-blocks", "tables", "header-ids"]

PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .25rem .6rem; text-align: left; }
code { font-size: .9em; }
pre { background: color-mix(in srgb, currentColor 7%, transparent); padding: .7rem; overflow-x: auto; }
</style></head><body>
<nav>{% for place, name in menu %}<a href="{{ place }}">{{ name }}</a> {% endfor %}
<a href="api/dabsmix.html">API</a></nav>
{{ body }}</body></html>
""",
    autoescape=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("site"))
    out: Path = parser.parse_args().out
    guides(out)
    pdoc.pdoc("dabsmix", output_directory=out / "api")
    print(out)


def guides(out: Path) -> None:
    """A page for each of `PAGES`, and for every other guide."""
    out.mkdir(parents=True, exist_ok=True)
    for picture in (path for path in (REPOSITORY / "docs").rglob("*") if path.suffix in PICTURES):
        copy = out / picture.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, copy)
    pages = PAGES | {
        f"docs/{path.name}": (f"{path.stem}.html", path.stem.replace("-", " ").capitalize())
        for path in sorted((REPOSITORY / "docs").glob("*.md"))
        if f"docs/{path.name}" not in PAGES
    }
    for source, (place, title) in pages.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        text = from_notebook(text) if source.endswith(".ipynb") else text
        html = markdown2.markdown(with_pages(text, source, pages), extras=EXTRAS)
        (out / place).write_text(PAGE.render(title=title, menu=pages.values(), body=Markup(html)), encoding="utf-8")


def from_notebook(text: str) -> str:
    """A notebook as Markdown: its texts, its code, and what that printed."""
    parts = []
    for cell in json.loads(text)["cells"]:
        content = "".join(cell["source"])
        parts.append(content if cell["cell_type"] == "markdown" else f"```python\n{content}\n```")
        for output in cell.get("outputs", ()):
            printed = output.get("text") or output.get("data", {}).get("text/plain") or []
            parts += [f"```\n{''.join(printed)}\n```"] if printed else []
    return "\n\n".join(parts)


def with_pages(text: str, source: str, pages: dict[str, tuple[str, str]]) -> str:
    """Links between files of the repository become links between pages; a file without a page is named, not linked."""

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        place = Path(os.path.normpath(Path(source).parent / target)).as_posix() if target else source
        if place in pages:
            return f"[{words}]({pages[place][0]}{anchor})"
        if place.endswith(PICTURES) and (REPOSITORY / place).exists():
            return f"[{words}]({place})"
        if not (REPOSITORY / place).exists():
            raise SystemExit(f"{source}: links to {target}, which is not in the repository")
        return words

    return re.sub(r"\[([^\]]+)\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)", link, text)


if __name__ == "__main__":
    main()
