"""Sending a run's metrics to TensorBoard, Weights & Biases or MLflow, through Accelerate's trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dabsmix.errors import UserError

__all__ = ["Track", "check_tracker", "tracker"]

Track = Callable[[Mapping[str, float], int], None]
"""Called with the values of a line of metrics, and the step."""


def check_tracker(kind: str | None) -> None:
    """Refuse a tracker whose package is not installed, before anything is computed.

    Raises:
        UserError: the package is missing.
    """
    if kind is not None and find_spec(kind) is None:
        raise UserError(f"--track {kind}: the package {kind} is not installed; pip install 'dabsmix[track]'")


@contextmanager
def tracker(kind: str | None, run: Path, config: Mapping[str, Any]) -> Iterator[Track | None]:
    """The function to call with each line of metrics; None if nothing is tracked.

    TensorBoard writes to ``tensorboard/`` in the run's folder. The others write to where they are configured to, in the
    project (experiment) ``dabsmix``, under the name of the run.
    """
    if kind is None:
        yield None
        return
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    match kind:
        case "tensorboard":
            accelerate_tracker = TensorBoardTracker("tensorboard", run)
        case "wandb":
            accelerate_tracker = WandBTracker("dabsmix", name=run.name)
        case _:
            accelerate_tracker = MLflowTracker("dabsmix", run_name=run.name)
    accelerate_tracker.start()
    try:
        accelerate_tracker.store_init_configuration(
            {k: v if isinstance(v, int | float | bool) else str(v) for k, v in config.items()}
        )
        yield lambda values, step: accelerate_tracker.log(dict(values), step=step)
    finally:
        accelerate_tracker.finish()
