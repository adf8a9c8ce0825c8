"""The sizes of the matrix's data in docs/recipes.md are those of the board's records."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) / ([\d,]+) / ([\d,]+) \|"


def test_sizes_of_the_matrix_are_those_of_its_records() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    rows = {
        name: [int(size.replace(",", "")) for size in sizes] for name, *sizes in re.findall(ROW, text, re.MULTILINE)
    }
    recorded: dict[str, set[tuple[int, ...]]] = {name: set() for name in rows}
    for path in ROOT.glob("leaderboard/runs/*-s[012]-*/transfer/*.json"):
        name = path.parents[1].name.partition("-")[0]
        record = json.loads(path.read_text())
        if name in rows and record.get("splits") and record["protocol"] == "v2":
            sizes = [record["splits"][split]["examples"] for split in ("train", "validation", "test")]
            recorded[name].add(tuple(sizes))
    assert len(rows) == 8
    for name, (_, *sizes) in rows.items():
        assert recorded[name] == {tuple(sizes)}, name
