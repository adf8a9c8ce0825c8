"""Workers of `dabsmix bench` as an array of SLURM jobs, through submitit.

A job is a thin parent: it starts ``python -m dabsmix bench ... --on local`` as a child, passes signals on to it, and
queues itself again when SLURM announces the end of its time. The jobs share the cells by locks in ``--out``, as workers
on one machine do, so the folder has to be on a file system that the nodes share and that supports locks.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from dabsmix.config import BenchConfig
from dabsmix.errors import UserError

__all__ = ["Worker", "submit_jobs"]

GRACE = 120  # seconds before the time limit at which SLURM warns; the child writes its checkpoint within them
REQUEUES = 1000  # after as many ends of its time a job is given up


def submit_jobs(words: Sequence[str], config: BenchConfig) -> list[str]:
    """Queue ``config.workers`` jobs for a bench command and return their ids.

    Args:
        words: the command line after ``dabsmix``.
        config: the plan's first matrix, whose operating flags count.

    Raises:
        UserError: submitit is not installed, there is no SLURM here, SLURM refuses the jobs, or their time is too
            short.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--on slurm needs submitit: pip install 'dabsmix[slurm]'") from error
    if submitit.SlurmExecutor.affinity() < 0:
        raise UserError("--on slurm: no `srun` here; run this on a login node, or use --on local")
    if 3600 * config.hours <= 2 * GRACE:
        raise UserError(f"--hours {config.hours:g}: SLURM announces the end {GRACE} s before; give a job more time")
    folder = config.out / "slurm"
    executor = submitit.AutoExecutor(folder=folder / "%j", slurm_max_num_timeout=REQUEUES)
    executor.update_parameters(
        name="dabsmix-bench",
        timeout_min=round(60 * config.hours),
        slurm_signal_delay_s=GRACE,
        slurm_array_parallelism=config.workers,
        **({"slurm_partition": config.partition} if config.partition else {}),
        **({"gpus_per_node": config.gpus} if config.gpus else {}),
    )
    before = set(folder.glob("*.pkl"))
    try:
        with executor.batch():
            jobs = [executor.submit(Worker([*words, "--on", "local", "--workers", "1"])) for _ in range(config.workers)]
    except submitit.core.utils.FailedJobError as error:
        for path in set(folder.glob("*.pkl")) - before:
            path.unlink()
        raise UserError(f"--on slurm: {' '.join(str(error).split())} (see --partition, --gpus and --hours)") from error
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
        # SLURM announces the end to every process of the job: the child inherits that it ignores this, and stops when
        # this parent tells it to
        announced = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            self._child = subprocess.Popen([sys.executable, "-m", "dabsmix", *self.words])
        finally:
            signal.signal(signal.SIGUSR2, announced)
        before = signal.signal(signal.SIGTERM, lambda number, frame: self.stop())
        try:
            # not wait(), which holds a lock that `checkpoint`, called by a signal in the midst of it, would wait for
            while (status := self._child.poll()) is None:
                time.sleep(0.2)
            return status
        finally:
            signal.signal(signal.SIGTERM, before)

    def stop(self) -> None:
        """Tell the child to stop; pretraining then writes a checkpoint."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def checkpoint(self, *args: Any) -> Any:
        """Stop the child, wait for its checkpoint, and go back into the queue with the same command.

        Failed cells are tried again once, not after each end of the job's time: one that diverges would take it all.
        """
        import submitit

        self.stop()
        if self._child is not None:
            try:
                self._child.wait(timeout=GRACE - 20)
            except subprocess.TimeoutExpired:
                self._child.kill()
        words = [word for word in self.words if word not in ("--retry", "--no-retry")]
        # the flag, because a plan may say `retry: true`
        return submitit.helpers.DelayedSubmission(Worker([*words, "--no-retry"]))
