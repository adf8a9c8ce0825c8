"""The usual augmentation of photographs, a whole batch at a time on its device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["augmented"]

PADDING = 4  # pixels that a small image may be shifted by, as usual for CIFAR
AREA = (0.2, 1.0)  # share of a large image that a crop covers, as in MoCo (He et al., 2020)
RATIO = 4 / 3  # the widest crop; the tallest is its inverse
JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 - JITTER to 1 + JITTER


def augmented(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """One random view of each image, float ``(B, C, side, side)`` in [0, 1] to the same.

    Below 64 pixels a side the crop is a shift by whole pixels with black beyond the edge; from 64 on it is a random
    resized crop. Then a mirror image half the time (if ``flip``), brightness, contrast, and saturation where there are
    three channels. ``generator`` lives on the device of the images.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    B, C, side, _ = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, generator=generator, device=images.device)

    # theta maps places of the view to places of the image, both on [-1, 1]: x' = width * x + left
    theta = images.new_zeros(B, 2, 3)
    if side < 64:
        width = height = torch.ones(B, device=images.device)
        shift = 2 / side  # one pixel
        left = shift * uniform(-PADDING, PADDING + 1).floor()
        top = shift * uniform(-PADDING, PADDING + 1).floor()
    else:
        area, ratio = uniform(*AREA), uniform(-math.log(RATIO), math.log(RATIO)).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        left, top = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)
    if flip:
        width = torch.where(uniform(0, 1) < 0.5, -width, width)
    theta[:, 0, 0], theta[:, 0, 2] = width, left
    theta[:, 1, 1], theta[:, 1, 2] = height, top
    images = grid_sample(images, affine_grid(theta, [B, C, side, side], align_corners=False), align_corners=False)

    def scale() -> Tensor:
        return uniform(1 - JITTER, 1 + JITTER).view(B, 1, 1, 1)

    images = (images * scale()).clamp(0, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * scale()).clamp(0, 1)
    if C == 3:
        grey = images.mean(dim=1, keepdim=True)
        images = (grey + (images - grey) * scale()).clamp(0, 1)
    return images
