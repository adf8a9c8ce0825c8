"""Random views of sounds, sensor windows and rows, a whole batch at a time on its device (``--views augment``).

Every draw is made for the examples of all processes, from a generator that is in the same state on each of them, and
cut by rank, so that the number of processes changes no view. Each change of a sound or window happens with
probability 1/2, independently for each example.

Shapes: B examples on this process, M mel bands, T frames or readings, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dabsmix.data.standardise import Standardise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dabsmix.modalities.spectrogram import Form

__all__ = ["SensorViews", "SoundViews", "TableViews", "draws", "mel_scale"]


def draws(examples: Tensor, generator: torch.Generator) -> Callable[..., Tensor]:
    """``uniform(low, high, *shape)`` draws ``(B, *shape)``: for the examples of the global batch, cut by rank."""
    import torch

    from dabsmix.distributed import local, world_size

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        everywhere = torch.rand(len(examples) * world_size(), *shape, generator=generator, device=examples.device)
        return low + (high - low) * local(everywhere)

    return uniform


@dataclass(frozen=True)
class SoundViews:
    """i-Mix's five augmentations of speech (Lee et al. 2021), on stored log-mel spectrograms.

    The reference changes the wave and its short-time spectrum; here only decibels by mel band are stored. A factor of
    0.7 to 1.1 of the amplitude adds decibels; a change of speed and pitch, by up to a fifth, moves frames and
    frequencies; a stretch, by up to a fifth, moves frames only; a shift is by up to a quarter of the frames. Whatever
    moves in from outside is as quiet as the quietest point. Noise takes up to 0.45 of the amplitude: in the reference
    it comes from recordings of background noise, here it is white and on average as loud as the example.

    Attributes:
        standardise: of the decibels.
        form: of the spectrograms.
    """

    standardise: Standardise
    form: Form

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Standardised spectrograms ``(B, 1, M, T)`` to one view of each."""
        import torch
        from torch.nn.functional import grid_sample

        mean, std = self.standardise.by_channel(inputs[0])
        decibels = inputs[0] * std + mean
        B, _, mels, frames = decibels.shape
        uniform = draws(decibels, generator)

        def sometimes(low: float, high: float, neutral: float) -> Tensor:
            return torch.where(uniform(0, 1) < 0.5, uniform(low, high), neutral)

        amplitude, speed, stretch = sometimes(0.7, 1.1, 1), sometimes(0.8, 1.2, 1), sometimes(0.8, 1.2, 1)
        shift = sometimes(-frames // 4, frames // 4 + 1, 0).floor()
        noise = sometimes(0, 0.45, 0)

        # where each point of the view comes from, in bands and frames of the example
        floor = decibels.amin(dim=(2, 3), keepdim=True)
        time = (torch.arange(frames, device=decibels.device) - shift[:, None]) * (speed * stretch)[:, None]
        top = mel_scale(torch.tensor(self.form.rate / 2))
        centres = torch.arange(1, mels + 1, device=decibels.device) / (mels + 1) * top
        band = mel_scale(hertz(centres) / speed[:, None]) / top * (mels + 1) - 1
        x = (2 * time + 1) / frames - 1
        y = (2 * band + 1) / mels - 1
        grid = torch.stack((x[:, None, :].expand(B, mels, frames), y[:, :, None].expand(B, mels, frames)), dim=3)
        moved = grid_sample(decibels - floor, grid.to(decibels.dtype), align_corners=False)
        loudness = (20 * amplitude.log10()).view(B, 1, 1, 1)
        power = 10 ** ((moved + floor + loudness) / 10)

        # the power of white noise at one point has an exponential distribution
        white = -torch.log1p(-uniform(0, 1, 1, mels, frames)) * power.mean(dim=(1, 2, 3), keepdim=True)
        share = noise.view(B, 1, 1, 1)
        power = power * (1 - share) ** 2 + white * share**2
        view = 10 * power.clamp(min=1e-10).log10()
        return (view - mean) / std, *inputs[1:]


def mel_scale(frequency: Tensor) -> Tensor:
    """Hz to mel on Slaney's scale: linear up to 1 kHz, logarithmic from there."""
    import torch

    high = 15 + 27 * torch.log(frequency.clamp(min=1000.0) / 1000) / torch.log(torch.tensor(6.4))
    return torch.where(frequency < 1000, 3 * frequency / 200, high)


def hertz(mel: Tensor) -> Tensor:
    """The inverse of `mel_scale`."""
    import torch

    return torch.where(mel < 15, 200 * mel / 3, 1000 * torch.exp((mel - 15) / 27 * torch.log(torch.tensor(6.4))))


@dataclass(frozen=True)
class SensorViews:
    """Augmentations of wearables' signals (Um et al. 2017): jitter, scaling, rotation, permutation.

    Jitter adds normal noise of 0.05 standard deviations; scaling multiplies each channel by N(1, 0.1²); rotation turns
    the axes of every triaxial sensor by a uniform angle about a uniform axis, as if the device were worn differently;
    permutation cuts the window at three uniform points and puts the four pieces in random order. Missing readings (NaN)
    stay missing, and the padding at the end of a recording stays at the end.

    Attributes:
        standardise: of the readings; a rotation acts on readings in their own unit.
        triaxial: the first of the three channels of each sensor with three axes; if empty, nothing is rotated.
    """

    standardise: Standardise
    triaxial: tuple[int, ...] = ()

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Standardised windows ``(B, C, T)`` to one view of each."""
        import torch

        mean, std = self.standardise.by_channel(inputs[0])
        x = inputs[0]
        B, channels, length = x.shape
        uniform = draws(x, generator)

        def normal(*shape: int) -> Tensor:  # from uniform draws, which are those of the global batch
            return torch.erfinv(uniform(-1, 1, *shape).clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5

        def where(changed: Any, x: Tensor) -> Tensor:
            return torch.where((uniform(0, 1) < 0.5).view(B, 1, 1), changed, x)

        x = where(x + 0.05 * normal(channels, length), x)
        x = where((x * std + mean) * (1 + 0.1 * normal(channels, 1)) / std - mean / std, x)
        turned = (x * std + mean).clone()
        rotation = rotations(uniform(-1, 1), uniform(-torch.pi, torch.pi), uniform(-torch.pi, torch.pi))
        for first in self.triaxial:
            turned[:, first : first + 3] = rotation @ turned[:, first : first + 3]
        x = where((turned - mean) / std, x)
        time = torch.arange(length, device=x.device)
        read = ~x.isnan().all(dim=1)
        lengths = length - read.flip(1).long().argmax(dim=1, keepdim=True)  # (B, 1), without the padding at the end
        cuts = (uniform(0, 1, 3) * lengths).sort(dim=1).values
        piece = (time[:, None] >= cuts[:, None]).sum(dim=2)  # (B, T)
        position = uniform(0, 1, 4).argsort(dim=1).gather(1, piece) * length + time
        position = torch.where(time < lengths, position, 4 * length + time)
        order = position.argsort(dim=1)
        x = where(x.gather(2, order[:, None].expand(-1, channels, -1)), x)
        return x, *inputs[1:]


def rotations(height: Tensor, longitude: Tensor, angle: Tensor) -> Tensor:
    """Rotations ``(B, 3, 3)`` by ``angle`` about the axis of this height and longitude on the unit sphere."""
    import torch

    ring = (1 - height**2).clamp(min=0).sqrt()
    axis = torch.stack((ring * longitude.cos(), ring * longitude.sin(), height), dim=1)
    identity = torch.eye(3, device=axis.device, dtype=axis.dtype)
    cross = torch.linalg.cross(identity.expand(len(axis), 3, 3), axis[:, None].expand(-1, 3, -1), dim=2)
    outer = axis[:, :, None] * axis[:, None]
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    turned: Tensor = cosine * identity + sine * cross + (1 - cosine) * outer
    return turned


@dataclass(frozen=True)
class TableViews:
    """i-Mix's masking noise (Lee et al. 2021) on some of a table's numeric columns.

    ``--views mask`` masks every numeric column, also those of zeros and ones, which i-Mix leaves as they are.

    Attributes:
        columns: the columns that are masked.
        rate: the probability that a cell becomes 0, the mean of a standardised column.
    """

    columns: tuple[int, ...]
    rate: float = 0.2

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Standardised rows ``(B, num_features)`` to one view of each. Empty cells stay empty."""
        import torch

        (x,) = inputs
        drawn = draws(x, generator)(0, 1, len(self.columns)) < self.rate
        masked = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        masked[:, list(self.columns)] = drawn
        return (x.masked_fill(masked & ~x.isnan(), 0),)
