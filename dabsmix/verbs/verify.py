"""A spot check of the leaderboard: a run's scores computed again from its encoder, or from its configuration."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dabsmix.board.record import ONLINE, agrees, shares
from dabsmix.board.row import Row, read
from dabsmix.config import TransferConfig
from dabsmix.errors import UserError
from dabsmix.registry import domains
from dabsmix.run import Run
from dabsmix.scoring.results import HeadMix

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Verified", "rows_of", "verify"]


class Verified(NamedTuple):
    """A row beside its score computed again: ``equal`` up to rounding, ``inside`` its interval, or ``outside``."""

    row: Row
    value: float
    verdict: Literal["equal", "inside", "outside"]


def rows_of(run: Run, csv_path: Path) -> list[Row]:
    """The rows that the leaderboard has of a run: one configuration may have another encoder on another machine.

    The encoder of ``none`` may be the same for a file that has changed, so the data count too.

    Raises:
        UserError: there are none.
    """
    ours = (run.record.config_hash, run.record.encoder_sha256, run.record.data_fingerprint)
    rows = [r for r in read(csv_path) if (r.config_hash, r.encoder_sha256, r.pretrain_fingerprint) == ours]
    if not rows:
        of = f"config hash {ours[0]}, encoder {ours[1][:12]}, data {ours[2][:12]}"
        raise UserError(f"{csv_path} has no row of {run.path} ({of})")
    return rows


def verify(
    rows: Sequence[Row],
    run: Run,
    *,
    accelerator: "Accelerator",
    data_root: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Verified]:
    """Score a run's encoder once more, in a temporary folder, as each of the rows says that it was scored.

    The probe of an online score is not kept: the row is held against the run's own online score, so it is verified only
    where the run was trained again. Scores on files that were given to transfer, which no record holds, are left
    out, and ``say`` is told.

    Args:
        rows: of the leaderboard, one run's; see `rows_of`.
        run: holds the encoder: the one that was submitted, or one that was trained again from its configuration.
        accelerator: where to score it.
        data_root: where raw data lie.
        say: called with lines for the user.

    Raises:
        UserError: the encoder's file is damaged or not the run's, or the data are not here.
    """
    from dabsmix.verbs.transfer import transfer  # imports torch; `rows_of` does not need it

    verified = []
    run.encoder_file()
    frozen = [row for row in rows if row.probe != ONLINE]
    named = {run.record.domain, *(name for card in domains().values() for name in (card.name, *card.aliases))}
    for task in dict.fromkeys(row.task for row in frozen if row.task not in named):
        say(
            f"the scores on {task} are not checked: it is not a data set here, and files given to transfer are not kept"
        )
    frozen = [row for row in frozen if row.task in named]
    with tempfile.TemporaryDirectory(prefix="dabsmix-verify-") as folder:
        copy = Path(folder) / run.path.name  # without kept features and scores, which are what is in question
        copy.mkdir()
        for name in ("run.json", "config.yaml", "encoder.safetensors"):
            shutil.copy(run.path / name, copy)
        for scored_as in dict.fromkeys(map(_scored_as, frozen)):
            mine = [row for row in frozen if _scored_as(row) == scored_as]
            task, protocol, mix = scored_as
            labels = shares(mine[0]) or tuple(dict.fromkeys(row.label_fraction for row in mine))
            config = TransferConfig(
                run=(copy,),
                task=(task,),
                protocol=protocol,  # type: ignore[arg-type]  # a row's protocol was checked
                labels=labels,
                metric=mine[0].metric if run.record.own_data and task == run.record.domain else None,
                head_mix=mix.method,
                mix_alpha=mix.alpha,
                mix_schedule=mix.schedule,
                mix_epochs=mix.epochs,
                data_root=data_root,
            )
            (record,) = transfer(config, accelerator=accelerator, say=say, answer=False)
            values = {(result.probe, result.label_fraction, result.metric): result.value for result in record.results}
            verified += [_verified(row, values[row.probe, row.label_fraction, row.metric]) for row in mine]
    online = float(run.record.metrics.get("online_test", "nan"))
    return verified + [_verified(row, online) for row in rows if row.probe == ONLINE]


def _scored_as(row: Row) -> tuple[str, str, HeadMix]:
    """The task, the protocol, and what was mixed: ``mixup`` under the probe ``finetune+mixup``."""
    try:
        return row.task, row.protocol, HeadMix.parse(row.probe.partition("+")[2])
    except ValueError as error:
        raise UserError(f"the row of {row.run} with probe {row.probe} cannot be verified: {error}") from None


def _verified(row: Row, value: float) -> Verified:
    inside = row.low is not None and row.high is not None and row.low <= value <= row.high
    return Verified(row, value, "equal" if agrees(row, value) else "inside" if inside else "outside")
