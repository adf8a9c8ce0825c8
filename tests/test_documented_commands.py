"""Every `dabsmix` command that a document shows is one that today's command line takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from dabsmix import arguments, config
from dabsmix.scoring.results import ProtocolName

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "leaderboard/README.md")), *ROOT.glob("docs/*.md")]
KINDS = {
    "list": config.ListConfig,
    "transfer": config.TransferConfig,
    "runs": config.RunsConfig,
    "submit": config.SubmitConfig,
    "leaderboard": config.LeaderboardConfig,
    "report": config.ReportConfig,
    "embed": config.EmbedConfig,
    "export": config.ExportConfig,
    "audit": config.AuditConfig,
    "quickstart": config.QuickstartConfig,
}


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each command in the page's blocks of code, without what the shell expands."""
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        for line in re.sub(r"\$\{.*?\}", "", block.replace("\\\n", " ")).splitlines():
            for part in re.split(r"&&|\|", line) if language in ("", "bash") else ():
                if matched := re.match(r"(?:.* -m (?:-- )?)?\s*dabsmix (.*)", part):
                    yield shlex.split(matched[1], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_can_be_read(page: Path) -> None:
    for command, *args in commands(page):
        if command == "pretrain":
            arguments.read_pretrain(args)
        elif command == "bench":
            arguments.read_plan([str(ROOT / word) if word.endswith(".yaml") else word for word in args])
        else:
            arguments.read(KINDS[command], command, args)


def test_the_recipes_are_found() -> None:
    recipes = list(commands(ROOT / "docs" / "recipes.md"))
    assert ["transfer", "--run", "runs/uci_har-contdmix-s0", "--labels", "5/class"] in recipes


def test_the_board_s_columns_name_every_protocol() -> None:
    lines = (ROOT / "leaderboard" / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("| `protocol`"))
    assert [name for name in get_args(ProtocolName) if f"`{name}`" not in line] == []
