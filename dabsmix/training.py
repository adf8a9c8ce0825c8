"""What all training shares, of encoders and of whole networks: the device and the learning rate of a step."""

from __future__ import annotations

import math
import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn

from dabsmix.errors import UserError

__all__ = ["accelerate", "learning_rate", "make_optimizer"]


WARMUP = 0.05  # of all steps


def accelerate(precision: str = "fp32", device: str | None = None) -> Accelerator:
    """Devices and processes. Queues and momentum copies are state of each process: DDP must not broadcast them.

    Args:
        precision: ``fp32``, ``bf16``, or ``fp16`` with a scaler of the loss.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None for what Accelerate finds.

    Raises:
        UserError: the device is not available, or has no use for fp16; this process computes in another precision or
            elsewhere already, as Accelerate knows one of each per process.
    """
    if device is not None:
        _choose(device)
    mixed = "no" if precision == "fp32" else precision
    # Accelerate's own state is not asked: made before the Accelerator, it would not join the processes of a CPU.
    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0]
    if precision == "fp16" and kind != "cuda":
        raise UserError(f"--precision fp16 is for CUDA GPUs without bf16, and this is a {kind}: use bf16 or fp32")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        raise UserError(f"--precision {precision}: this process has used another one already; start a new process")
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=mixed,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if device is not None and accelerator.device.type != torch.device(device).type:
        raise UserError(
            f"--device {device}: this process computes on {accelerator.device} (an earlier call, or "
            "$ACCELERATE_USE_CPU, decided so); start a new process"
        )
    return accelerator


def _choose(name: str) -> None:
    """Check that a device is there, and make it the current one of its kind."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: not known; choose cpu, cuda, cuda:1 (the second GPU) or mps")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= count:
        raise UserError(f"--device {name}: not available; this machine has {count} of type {device.type}")
    if device.type == "cuda" and device.index is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"--device {name}: several processes take one GPU each; choose them by CUDA_VISIBLE_DEVICES"
            )
        torch.cuda.set_device(device)


def make_optimizer(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, or ``sgd`` with i-Mix's momentum of 0.9, whose decay is part of the gradient."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def learning_rate(step: int, steps: int, peak: float, schedule: str, steps_per_epoch: int = 1) -> float:
    """The learning rate of a step: constant; a warm-up over the first 5 % and cosine to 0 over the rest; or i-Mix's.

    i-Mix's schedules, ``epoch-cosine`` and ``epoch-steps``, change between epochs: with E epochs, epoch e has the rate
    peak · (1 + cos(π e / E)) / 2, or a tenth of the rate from 60 % of them and again from 80 %. The first 10 epochs (5
    where E ≤ 500) are a linear warm-up by steps, from 0 to where the schedule is then; to the cosine's it adds a
    thousandth of the way to the peak, as the reference does. The reference's warm-up is one step ahead of this one: its
    first step does not have the rate 0.
    """
    if schedule == "constant":
        return peak
    if schedule.startswith("epoch-"):
        epochs = math.ceil(steps / steps_per_epoch)
        warm = min(5 if epochs <= 500 else 10, epochs)
        if step < warm * steps_per_epoch:
            floor, cosine = peak / 1000, (1 + math.cos(math.pi * warm / epochs)) / 2
            target = floor + (peak - floor) * cosine if schedule == "epoch-cosine" else peak
            return target * step / (warm * steps_per_epoch)
        progress = step // steps_per_epoch / epochs
        if schedule == "epoch-cosine":
            return peak * (1 + math.cos(math.pi * progress)) / 2
        return peak * 0.1 ** sum(progress >= milestone for milestone in (0.6, 0.8))
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
