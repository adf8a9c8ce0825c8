"""Workers of `dabsmix bench` as an array of SLURM jobs, through submitit.

A job is a thin parent: it starts ``python -m dabsmix bench ... --on local`` as a child, passes signals on to it, and
queues itself again when SLURM announces the end of its time. The jobs share the cells by locks in ``--out``, as workers
on one machine do, so the folder has to be on a file system that the nodes share and that supports locks.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from dabsmix.config import BenchConfig
from dabsmix.errors import UserError

__all__ = ["Worker", "submit_jobs"]

GRACE = 120  # seconds before the time limit at which SLURM warns; the child writes its checkpoint within them


def submit_jobs(words: Sequence[str], config: BenchConfig) -> list[str]:
    """Queue ``config.workers`` jobs for a bench command and return their ids.

    Args:
        words: the command line after ``dabsmix``.
        config: the plan's first matrix, whose operating flags count.

    Raises:
        UserError: submitit is not installed, or there is no SLURM here.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--on slurm needs submitit: pip install 'dabsmix[slurm]'") from error
    if submitit.SlurmExecutor.affinity() < 0:
        raise UserError("--on slurm: no `srun` here; run this on a login node, or use --on local")
    executor = submitit.AutoExecutor(folder=config.out / "slurm" / "%j")
    executor.update_parameters(
        name="dabsmix-bench",
        timeout_min=round(60 * config.hours),
        slurm_signal_delay_s=GRACE,
        slurm_array_parallelism=config.workers,
        **({"slurm_partition": config.partition} if config.partition else {}),
        **({"gpus_per_node": config.gpus} if config.gpus else {}),
    )
    with executor.batch():
        jobs = [executor.submit(Worker([*words, "--on", "local", "--workers", "1"])) for _ in range(config.workers)]
    return [str(job.job_id) for job in jobs]


class Worker:
    """The work of a job. submitit pickles it, calls it, and calls `checkpoint` when SLURM announces the end.

    submitit ignores SIGTERM and uses USR2 for the announcement.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._child: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"words": self.words, "_child": None}

    def __call__(self) -> int:
        """Run the child to its end and return its exit status. Failed cells do not make the job fail."""
        self._child = subprocess.Popen([sys.executable, "-m", "dabsmix", *self.words])
        before = signal.signal(signal.SIGTERM, lambda number, frame: self.stop())
        try:
            return self._child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)

    def stop(self) -> None:
        """Tell the child to stop; pretraining then writes a checkpoint."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def checkpoint(self, *args: Any) -> Any:
        """Stop the child, wait for its checkpoint, and go back into the queue with the same command."""
        import submitit

        self.stop()
        if self._child is not None:
            try:
                self._child.wait(timeout=GRACE - 20)
            except subprocess.TimeoutExpired:
                self._child.kill()
        return submitit.helpers.DelayedSubmission(Worker(self.words))
