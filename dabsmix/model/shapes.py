"""The named encoders and their shapes; no torch here, so that a name can be checked and listed at once."""

from dataclasses import dataclass, replace
from typing import Literal

from dabsmix.errors import UserError, did_you_mean

__all__ = ["ENCODERS", "TIMM", "AnyConfig", "Columns", "EncoderConfig", "MLPConfig", "ResNetConfig", "encoder_config"]

Columns = Literal["shared", "own"]


@dataclass(frozen=True)
class EncoderConfig:
    """A transformer's shape.

    ``attend_padding`` makes padding a token like any other, attended to, pooled, mixed and masked, as the DABS
    reference does; ``columns`` says how a table's numeric columns are embedded (see ``encoder.TableEmbed``).
    """

    width: int
    depth: int
    heads: int
    head_dim: int
    mlp: int
    dropout: float = 0.1
    qkv_bias: bool = False
    final_norm: bool = False
    eps: float = 1e-5
    position_std: float = 1.0
    attend_padding: bool = False
    columns: Columns = "own"


@dataclass(frozen=True)
class MLPConfig:
    """A perceptron for tables, without tokens (i-Mix, Lee et al. 2021).

    Linear, batch norm and ReLU to each of ``widths`` but the last, Linear to the last, and the maximum of each
    ``pieces`` neighbouring units (maxout), so that a feature has ``widths[-1] / pieces`` numbers.
    """

    widths: tuple[int, ...]
    pieces: int = 4


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network for images and spectrograms, without tokens (He et al. 2016; timm's blocks).

    ``layers`` counts the blocks of its four stages. Below 65 pixels a side the stem is i-Mix's for CIFAR: one 3x3
    convolution without stride, no pooling.
    """

    block: Literal["basic", "bottleneck"]
    layers: tuple[int, int, int, int]


AnyConfig = EncoderConfig | MLPConfig | ResNetConfig

_VIT = EncoderConfig(
    width=384,
    depth=12,
    heads=6,
    head_dim=64,
    mlp=1536,
    dropout=0.0,
    qkv_bias=True,
    final_norm=True,
    eps=1e-6,
    position_std=0.02,
)

ENCODERS: dict[str, AnyConfig] = {
    # DABS (Tamkin et al. 2021), its models/transformer: inner width 8 x 64 = 512, dropout, N(0, 1) positions.
    "dabs": EncoderConfig(width=256, depth=12, heads=8, head_dim=64, mlp=512),
    # The same at a size for two CPU cores.
    "tiny": EncoderConfig(width=64, depth=4, heads=4, head_dim=16, mlp=128),
    # timm's vit_small, vit_base and vit_large (Dosovitskiy et al. 2021; Touvron et al. 2021), patch embedding aside.
    "vit_small": _VIT,
    "vit_base": replace(_VIT, width=768, heads=12, mlp=3072),
    "vit_large": replace(_VIT, width=1024, depth=24, heads=16, mlp=4096),
    # i-Mix (Lee et al. 2021) for tables: the paper's five layers; and the same at a quarter of the width.
    "mlp": MLPConfig(widths=(2048, 2048, 4096, 4096, 8192)),
    "mlp_quarter": MLPConfig(widths=(512, 512, 1024, 1024, 2048)),
    # i-Mix for images and sounds.
    "resnet18": ResNetConfig("basic", (2, 2, 2, 2)),
    "resnet50": ResNetConfig("bottleneck", (3, 4, 6, 3)),
}


TIMM = "timm:"
"""How ``--init`` names weights of timm."""


def encoder_config(name: str) -> AnyConfig:
    """The shape of a named encoder.

    Raises:
        UserError: no encoder has this name.
    """
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}{did_you_mean(name, ENCODERS)}; there are: {', '.join(ENCODERS)}")
    return ENCODERS[name]
