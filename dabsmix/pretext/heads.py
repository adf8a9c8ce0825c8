"""Projection heads: from pooled features to the space in which instances are told apart.

Batch norm takes its statistics over the batch of all processes (torch's SyncBatchNorm refuses the CPU).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dabsmix.distributed import all_sum, world_size

__all__ = ["PROJECTION", "GlobalBatchNorm", "HeadNorm", "dabs_head", "mlp_head"]

HeadNorm = Literal["none", "first", "both"]

PROJECTION = 128
"""Length of a projection, in DABS and in i-Mix."""


def dabs_head(width: int) -> nn.Module:
    """LayerNorm and Linear to 128 (DABS, Tamkin et al. 2021): ``(B, width)`` to ``(B, 128)``."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PROJECTION))


def mlp_head(width: int, hidden: int, norm: HeadNorm) -> nn.Module:
    """Linear, ReLU, Linear to 128, ``(B, width)`` to ``(B, 128)`` (i-Mix, Lee et al. 2021).

    Batch norm follows the first layer, both layers, or none.
    """
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    if norm != "none":
        layers.append(GlobalBatchNorm(hidden))
    layers += [nn.ReLU(), nn.Linear(hidden, PROJECTION)]
    if norm == "both":
        layers.append(GlobalBatchNorm(PROJECTION))
    return nn.Sequential(*layers)


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
        """Normalised over the batch, and by the running statistics in evaluation mode."""
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
