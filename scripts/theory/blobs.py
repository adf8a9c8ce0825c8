"""The slides' toy of i-Mix: blobs in the plane, a three-layer ReLU network with normalised features, one negative."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CENTRES = torch.tensor([[-2.0, -1.5], [2.0, -1.5], [-1.2, 2.0], [1.8, 1.6]])
SPREAD = 0.45


class Triples(NamedTuple):
    """Two examples of one blob, an example of any blob, and λ ~ Beta(1, 1): ``(B, 2)`` three times and ``(B, 1)``."""

    one: Tensor
    two: Tensor
    negative: Tensor
    weight: Tensor

    @property
    def mixed(self) -> Tensor:
        """``λ x₁ + (1-λ) x₂``."""
        return self.weight * self.one + (1 - self.weight) * self.two


def points(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Examples ``(number, 2)`` and their blobs ``(number,)``."""
    blob = torch.randint(len(CENTRES), (number,), generator=generator)
    return CENTRES[blob] + SPREAD * torch.randn(number, 2, generator=generator), blob


def triples(number: int, generator: torch.Generator) -> Triples:
    one, blob = points(number, generator)
    two = CENTRES[blob] + SPREAD * torch.randn(number, 2, generator=generator)
    return Triples(one, two, points(number, generator)[0], torch.rand(number, 1, generator=generator))


class Features(nn.Module):
    """Three layers with ReLU, then features of length one."""

    def __init__(self, hidden: int = 64, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 2)`` to ``(B, width)``."""
        return F.normalize(self.layers(x), dim=-1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)


def unmixed_loss(f: Features, t: Triples) -> Tensor:
    """L_un: InfoNCE with one negative."""
    anchor = f(t.two)
    return F.softplus(-dot(anchor, f(t.one) - f(t.negative))).mean()


def mixed_loss(f: Features, t: Triples) -> Tensor:
    """i-Mix InfoNCE with one negative."""
    anchor, negative = f(t.mixed), f(t.negative)
    own = F.softplus(-dot(anchor, f(t.one) - negative))
    other = F.softplus(-dot(anchor, f(t.two) - negative))
    return (t.weight[:, 0] * own + (1 - t.weight[:, 0]) * other).mean()


def train(seed: int, *, mixed: bool, steps: int) -> Iterator[Features]:
    """The network before each step and after the last, trained by Adam on fresh triples."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    f = Features()
    optimizer = torch.optim.Adam(f.parameters(), lr=1e-3)
    for _ in range(steps):
        yield f
        loss = (mixed_loss if mixed else unmixed_loss)(f, triples(256, generator))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    yield f
