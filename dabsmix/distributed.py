"""The global batch on one process or many: which rows belong to this process, and how it gets the others.

Local batches have the same length on every process. Global row ``rank * b + i`` is example i of process ``rank``. Every
process's loss is the mean over its own examples and DDP averages the gradients, so together they follow the mean over
the global batch: what these functions send back is a plain sum over processes, scaled by nothing.
"""

from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["all_sum", "gather", "gather_with_grad", "local", "own_rows", "rank", "to_device", "world_size"]


def rank() -> int:
    """This process's number, 0 if there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that share the batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local(rows: Tensor) -> Tensor:
    """This process's rows of a tensor over the global batch, ``(n, ...)`` to ``(n / processes, ...)``."""
    return rows.chunk(world_size())[rank()]


def to_device(drawn: NDArray[Any], device: torch.device) -> Tensor:
    """Copy draws made on the CPU to the device without waiting for the work that is queued there.

    A plain copy from memory that is not pinned would wait for all of it.
    """
    rows = torch.from_numpy(drawn)
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)


def own_rows(examples: Tensor) -> Tensor:
    """The global rows ``(b,)`` of this process's examples ``(b, ...)``: their virtual labels."""
    return rank() * len(examples) + torch.arange(len(examples), device=examples.device)


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes in order of rank, ``(b, ...)`` to ``(n, ...)``, without gradient."""
    if world_size() == 1:
        return rows.detach()
    gathered = rows.new_empty(world_size() * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.detach().contiguous())
    return gathered


def gather_with_grad(rows: Tensor) -> Tensor:
    """As `gather`, but each process's rows receive the sum of the gradients that the processes have for them."""
    return rows if world_size() == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]  # autograd is untyped


def all_sum(x: Tensor) -> Tensor:
    """The sum of ``x`` over processes; ``x`` receives the sum of the gradients that the processes have for it."""
    return x if world_size() == 1 else _AllSum.apply(x)  # type: ignore[no-untyped-call]  # autograd is untyped


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return local(_summed(grad))


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _summed(grad)


def _summed(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)  # all_reduce works in place
    dist.all_reduce(total)
    return total
