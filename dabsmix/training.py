"""What every training here shares, of encoders and of whole networks: devices and the rate of a step."""

from __future__ import annotations

import math

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from dabsmix.errors import UserError

__all__ = ["accelerate", "learning_rate"]


WARMUP = 0.05  # of all steps


def accelerate(precision: str = "fp32") -> Accelerator:
    """Devices and processes. Queues and momentum copies are state of each process: DDP must not broadcast them.

    Raises:
        UserError: this process computes in the other precision already; Accelerate knows one per process.
    """
    mixed = "bf16" if precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        raise UserError(f"--precision {precision}: this process has used another one already; start a new process")
    return Accelerator(
        mixed_precision=mixed,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def learning_rate(step: int, steps: int, peak: float, schedule: str) -> float:
    """The rate of a step: constant, or linear warm-up over the first 5 % and cosine to 0 over the rest."""
    if schedule == "constant":
        return peak
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
