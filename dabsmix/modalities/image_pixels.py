"""Images on their device, a whole batch at a time: stored integers to standardised floats, and augmented views."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dabsmix.data.standardise import Standardise
from dabsmix.modalities.augmentation import draws

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Pixels", "augmented", "blurred", "hue_shifted", "imix_view"]

PADDING = 4  # pixels that a small image may be shifted by, as usual for CIFAR
AREA = (0.2, 1.0)  # share of a large image that a crop covers, as in MoCo (He et al., 2020)
RATIO = 4 / 3  # the widest crop; the tallest is its inverse
JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 - JITTER to 1 + JITTER
HUE = 0.1  # of the circle, either way
BLUR = (0.1, 2.0)  # standard deviation in pixels


@dataclass(frozen=True)
class Pixels:
    """Stored integers to what the encoder sees: ``(x - mean) / std`` by channel, and the augmentation of that.

    Attributes:
        standardise: mean and standard deviation by channel, on the scale of the stored values.
        top: the largest value that can be stored.
        flip: whether `augment` mirrors.
        imix: whether `augment` is i-Mix's, `imix_view`, in place of `augmented`.
    """

    standardise: Standardise
    top: int
    flip: bool
    imix: bool = False

    def normalise(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The first input, integers ``(B, channels, side, side)``, to float32; others pass."""
        return *self.standardise(inputs[:1]), *inputs[1:]

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The first input, normalised, augmented on the [0, 1] scale; others pass."""
        mean, std = self.standardise.by_channel(inputs[0])
        images = (imix_view if self.imix else augmented)((inputs[0] * std + mean) / self.top, generator, flip=self.flip)
        return (images * self.top - mean) / std, *inputs[1:]


def augmented(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """One random view of each image, float ``(B, C, side, side)`` in [0, 1] to the same.

    Below 64 pixels a side the crop is a shift by whole pixels with black beyond the edge; from 64 on it is a random
    resized crop. Then a mirror image half the time (if ``flip``), brightness, contrast, and saturation where there are
    three channels. ``generator`` lives on the device of the images and is in the same state on every process: draws
    are made for the images of all processes and cut by rank.
    """
    import torch

    B, C, side, _ = images.shape
    uniform = draws(images, generator)

    if side < 64:
        width = height = torch.ones(B, device=images.device)
        shift = 2 / side  # one pixel
        left = shift * uniform(-PADDING, PADDING + 1).floor()
        top = shift * uniform(-PADDING, PADDING + 1).floor()
    else:
        width, height, left, top = _crop(uniform)
    if flip:
        width = torch.where(uniform(0, 1) < 0.5, -width, width)
    images = _resampled(images, width, height, left, top)

    def scale() -> Tensor:
        return uniform(1 - JITTER, 1 + JITTER).view(B, 1, 1, 1)

    images = (images * scale()).clamp(0, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * scale()).clamp(0, 1)
    if C == 3:
        grey = images.mean(dim=1, keepdim=True)
        images = (grey + (images - grey) * scale()).clamp(0, 1)
    return images


def imix_view(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """One view of each image as the i-Mix reference draws it, float ``(B, C, side, side)`` in [0, 1] to the same.

    A random resized crop of 20 to 100 % of the area; with probability 0.8 brightness, contrast, saturation (each by 0.6
    to 1.4) and hue (by up to a tenth of the circle); grey with probability 0.2; from 64 pixels a side on a Gaussian
    blur of 0.1 to 2 pixels with probability 0.5; a mirror image half the time (if ``flip``). Of images without three
    channels brightness and contrast alone change. The reference takes the four colour changes in random order and
    resamples crops by PIL; here the order is as listed, and resampling bilinear. ``generator`` as in `augmented`.
    """
    import torch

    B, C, side, _ = images.shape
    uniform = draws(images, generator)
    width, height, left, top = _crop(uniform)
    mirrored = uniform(0, 1) < 0.5
    if flip:
        width = torch.where(mirrored, -width, width)
    images = _resampled(images, width, height, left, top)

    def where(probability: float, changed: Tensor) -> Tensor:
        return torch.where((uniform(0, 1) < probability).view(B, 1, 1, 1), changed, images)

    def factor() -> Tensor:
        return uniform(1 - JITTER, 1 + JITTER).view(B, 1, 1, 1)

    jittered = (images * factor()).clamp(0, 1)
    mean = _grey(jittered).mean(dim=(1, 2, 3), keepdim=True)
    jittered = (mean + (jittered - mean) * factor()).clamp(0, 1)
    if C == 3:
        grey = _grey(jittered)
        jittered = (grey + (jittered - grey) * factor()).clamp(0, 1)
        jittered = hue_shifted(jittered, uniform(-HUE, HUE))
    images = where(0.8, jittered)
    if C == 3:
        images = where(0.2, _grey(images).expand_as(images))
    if side >= 64:
        images = where(0.5, blurred(images, uniform(*BLUR)))
    return images


def _crop(uniform: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Width and height of a crop as shares of the image, and where its centre lies from the image's, on [-1, 1]."""
    area, ratio = uniform(*AREA), uniform(-math.log(RATIO), math.log(RATIO)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)
    return width, height, left, top


def _resampled(images: Tensor, width: Tensor, height: Tensor, left: Tensor, top: Tensor) -> Tensor:
    """The crop of each image at its own size, black beyond the edge; a negative width mirrors."""
    from torch.nn.functional import affine_grid, grid_sample

    # theta maps places of the view to places of the image, both on [-1, 1]: x' = width * x + left
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, left
    theta[:, 1, 1], theta[:, 1, 2] = height, top
    return grid_sample(images, affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def _grey(images: Tensor) -> Tensor:
    """Luma of RGB images (ITU-R 601, as torchvision and PIL), the mean of other channels; ``(B, 1, H, W)``."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    weights = images.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def hue_shifted(images: Tensor, shift: Tensor) -> Tensor:
    """RGB images ``(B, 3, H, W)`` in [0, 1] with their hue moved by ``shift`` ``(B,)`` of the circle, through HSV."""
    import torch

    value, index = images.max(dim=1)
    chroma = value - images.min(dim=1).values
    red, green, blue = images.unbind(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.stack(((green - blue) / safe % 6, (blue - red) / safe + 2, (red - green) / safe + 4), dim=1)
    hue = sixths.gather(1, index[:, None])[:, 0] + 6 * shift[:, None, None]

    def channel(n: float) -> Tensor:  # of hue in sixths: value less chroma times how far the channel is from it
        place = (n + hue) % 6
        return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)

    moved = torch.stack((channel(5), channel(3), channel(1)), dim=1)
    return torch.where((chroma > 0)[:, None], moved, images)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Images under a Gaussian of ``sigma`` ``(B,)`` pixels, cut at 6 pixels, the edge repeated beyond it."""
    import torch
    from torch.nn.functional import conv2d, pad

    B, C, height, width = images.shape
    reach = 6
    offset = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(C, dim=0)[:, None, None]  # (B C, 1, 1, taps)
    rows = pad(images.reshape(1, B * C, height, width), (reach, reach, reach, reach), mode="replicate")
    rows = conv2d(rows, kernel, groups=B * C)
    return conv2d(rows, kernel.mT, groups=B * C).view_as(images)
