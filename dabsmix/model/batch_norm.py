"""Batch normalisation with statistics over the batch of all processes; torch's SyncBatchNorm refuses the CPU."""

import torch
from torch import Tensor, nn

from dabsmix.distributed import all_sum, world_size

__all__ = ["GlobalBatchNorm", "GlobalBatchNorm2d"]


class GlobalBatchNorm(nn.Module):
    """Batch normalisation of ``(B, dim)`` with statistics over all processes, in float32 whatever autocast is on.

    On one process it is ``nn.BatchNorm1d(dim)``, defaults included.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the statistics of the batch, or by the running statistics in evaluation mode."""
        x = x.to(self.weight.dtype)
        if self.training:
            n = x.shape[0] * world_size()
            mean = all_sum(x.sum(dim=0)) / n
            var = all_sum((x - mean).square().sum(dim=0)) / n
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / max(n - 1, 1), self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """The same for images ``(B, dim, H, W)``, by channel; on one process it is torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the statistics of the batch and all places, or by the running ones in evaluation mode."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        dtype = x.dtype
        x = x.to(self.weight.dtype)
        n = x.numel() // x.shape[1] * world_size()
        mean = all_sum(x.sum(dim=(0, 2, 3))) / n
        centred = x - mean[:, None, None]
        var = all_sum(centred.square().sum(dim=(0, 2, 3))) / n
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / max(n - 1, 1), self.momentum)
        scale = torch.rsqrt(var + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(dtype)
