"""Images on their device, a whole batch at a time: stored integers to standardised floats, and augmented views."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dabsmix.data.standardise import Standardise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Pixels", "augmented"]

PADDING = 4  # pixels that a small image may be shifted by, as usual for CIFAR
AREA = (0.2, 1.0)  # share of a large image that a crop covers, as in MoCo (He et al., 2020)
RATIO = 4 / 3  # the widest crop; the tallest is its inverse
JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 - JITTER to 1 + JITTER


@dataclass(frozen=True)
class Pixels:
    """Stored integers to what the encoder sees: ``(x - mean) / std`` by channel, and the augmentation of that.

    Attributes:
        standardise: mean and standard deviation by channel, on the scale of the stored values.
        top: the largest value that can be stored.
        flip: whether `augment` mirrors.
    """

    standardise: Standardise
    top: int
    flip: bool

    def normalise(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The first input, integers ``(B, channels, side, side)``, to float32; others pass."""
        return *self.standardise(inputs[:1]), *inputs[1:]

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The first input, normalised, augmented on the [0, 1] scale by `augmented`; others pass."""
        mean, std = self.standardise.by_channel(inputs[0])
        images = augmented((inputs[0] * std + mean) / self.top, generator, flip=self.flip)
        return (images * self.top - mean) / std, *inputs[1:]


def augmented(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """One random view of each image, float ``(B, C, side, side)`` in [0, 1] to the same.

    Below 64 pixels a side the crop is a shift by whole pixels with black beyond the edge; from 64 on it is a random
    resized crop. Then a mirror image half the time (if ``flip``), brightness, contrast, and saturation where there are
    three channels. ``generator`` lives on the device of the images and is in the same state on every process: draws
    are made for the images of all processes and cut by rank.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    from dabsmix.distributed import local, world_size

    B, C, side, _ = images.shape

    def uniform(low: float, high: float) -> Tensor:
        everywhere = torch.rand(B * world_size(), generator=generator, device=images.device)
        return low + (high - low) * local(everywhere)

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
