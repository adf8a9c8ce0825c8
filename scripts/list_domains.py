"""Write docs/domains.md: every data set, algorithm and encoder, as `dabsmix list` prints them.

python scripts/list_domains.py [--out docs/domains.md]
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from dabsmix.catalogue import catalogue
from dabsmix.files import write

HEAD = """# Every data set, algorithm and encoder

Written by `python scripts/list_domains.py`. `dabsmix list` prints the same tables and says which data sets are on your
machine. The names are the values of `dabsmix pretrain --domain NAME --algo NAME --encoder NAME`. Sizes are numbers of
training and test examples, if the source states them. A data set is obtained by *download* (dabsmix fetches it when it
is needed), after you *register* with its owner, *by hand* (you put it under the data root), or it is *embedded* in a
library or drawn by the program.
"""


@dataclass
class Config:
    """Where to write."""

    out: Path = Path("docs/domains.md")


def page() -> str:
    """The page, which is the same on every machine."""
    listed = catalogue("all", Path())
    tables = {
        "domains": {
            **{"name": "name", "modality": "modality", "sizes": "train / test", "obtained": "obtained"},
            **{"licence": "licence", "title": "what it is"},
        },
        "algorithms": {"name": "name", "summary": "what it does"},
        "encoders": {"name": "name", "shape": "shape"},
    }
    titles = {"domains": "Data sets", "algorithms": "Algorithms", "encoders": "Encoders"}
    parts = [f"## {titles[kind]}\n\n{_table(columns, listed[kind])}" for kind, columns in tables.items()]
    return "\n\n".join([HEAD.rstrip(), *parts]) + "\n"


def _table(columns: dict[str, str], entries: Iterable[dict[str, Any]]) -> str:
    rows = [list(columns.values()), ["---"] * len(columns)]
    for entry in entries:
        name, *others = (str(entry[column]).replace("|", r"\|") for column in columns)
        rows.append([f"`{name}`", *others])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(config: Config) -> None:
    """Write the page."""
    write(config.out, lambda path: path.write_text(page(), encoding="utf-8"))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
