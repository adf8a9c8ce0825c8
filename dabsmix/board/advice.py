"""Which algorithm to use on a data set: what a block of the standings allows to say, in one sentence."""

from collections.abc import Iterable

from dabsmix.board.row import Row
from dabsmix.board.standings import Against, Line, Ranking, Section, is_random, labels, standings
from dabsmix.board.table import place
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.results import in_percent

__all__ = ["advice"]


def advice(rows: Iterable[Row], *, probe: str = "linear", label_fraction: str = "1") -> list[str]:
    """One sentence for each data set and budget: what to use, by how much it was better, and how certain that is.

    Args:
        rows: of the leaderboard.
        probe, label_fraction: which scores.
    """
    scored = [row for row in rows if (row.probe, row.label_fraction) == (probe, label_fraction)]
    return [_sentence(section, block) for section in standings(scored) for block in section.blocks]


def _sentence(section: Section, block: Ranking) -> str:
    sign = 1 if metric(block.metric).higher else -1
    setting = (section.encoder, section.protocol, block.budget, f"{block.probe} probe", labels(block.label_fraction))
    where = f"{place(section)} ({', '.join(filter(None, setting))})"
    ranked = sorted((line for line in block.lines if line.part == "ranked"), key=lambda line: -sign * line.mean)
    if not ranked:
        return f"{where}: no algorithm has a score, so there is nothing to advise."
    if not any(is_random(line) for line in block.lines):
        return (
            f"{where}: whether pretraining helps is unknown, because there is no random encoder to compare with; "
            "add none to --algos."
        )
    better = [line for line in ranked if line.against and line.against.shown and sign * line.against.difference > 0]
    if better:
        text = f"{where}: use {_name(better[0])}, which is {_gain(block, better[0].against, sign)}"
        if len(better) > 1:
            names = ", ".join(map(_name, better[1:]))
            text += f"; shown to be better than a random encoder too: {names}; which of them is best was not tested"
    else:
        text = (
            f"{where}: no algorithm is shown to be better than a random encoder, so nothing here speaks for "
            f"pretraining; the best, {_name(ranked[0])}, is {_gain(block, ranked[0].against, sign)}"
        )
    return f"{text}{_yardstick(block, (better or ranked)[0], sign)}."


def _name(line: Line) -> str:
    return f"{line.name} ({line.setting})" if line.setting else line.name


def _gain(block: Ranking, against: Against | None, sign: int) -> str:
    """How much better than the random encoder, and how certain that is."""
    if against is None:
        return "the same, for it is the random encoder"
    scale, digits, unit = (100, 1, " points") if in_percent(block.metric) else (1, 4, "")
    what = "better" if sign * against.difference >= 0 else "worse"
    text = f"{abs(against.difference) * scale:.{digits}f}{unit} {what} in {block.metric} than a random encoder"
    if against.low is None or against.high is None:
        return f"{text} (no interval: that takes 3 seeds of both)"
    low, high = sorted(sign * end * scale for end in (against.low, against.high))
    interval = f"95 % interval {low:+.{digits}f} to {high:+.{digits}f}"
    if against.shown:
        return f"{text} ({interval}, shown at 5 % among all algorithms)"
    return f"{text} ({interval}, not shown at 5 % among all algorithms, so it may be chance)"


def _yardstick(block: Ranking, chosen: Line, sign: int) -> str:
    """What needs no pretraining and scores no lower, if anything does."""
    others = [line for line in block.lines if line.part == "yardstick" and not is_random(line)]
    best = max(others, key=lambda line: sign * line.mean, default=None)
    if best is None or sign * best.mean < sign * chosen.mean:
        return ""
    scale, digits = (100, 1) if in_percent(block.metric) else (1, 4)
    return (
        f"; with {best.name} and no pretraining the score is {best.mean * scale:.{digits}f}, with "
        f"{_name(chosen)} {chosen.mean * scale:.{digits}f}, so try that first"
    )
