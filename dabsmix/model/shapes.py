"""The named encoders and their shapes; no torch here, so that a name can be checked and listed at once."""

from dataclasses import dataclass, replace
from typing import Literal

from dabsmix.errors import UserError, did_you_mean

__all__ = ["ENCODERS", "Columns", "EncoderConfig", "encoder_config"]

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

ENCODERS = {
    # DABS (Tamkin et al. 2021), its models/transformer: inner width 8 x 64 = 512, dropout, N(0, 1) positions.
    "dabs": EncoderConfig(width=256, depth=12, heads=8, head_dim=64, mlp=512),
    # The same at a size for two CPU cores.
    "tiny": EncoderConfig(width=64, depth=4, heads=4, head_dim=16, mlp=128),
    # timm's vit_small, vit_base and vit_large (Dosovitskiy et al. 2021; Touvron et al. 2021), patch embedding aside.
    "vit_small": _VIT,
    "vit_base": replace(_VIT, width=768, heads=12, mlp=3072),
    "vit_large": replace(_VIT, width=1024, depth=24, heads=16, mlp=4096),
}


def encoder_config(name: str) -> EncoderConfig:
    """The shape of a named encoder.

    Raises:
        UserError: no encoder has this name.
    """
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}{did_you_mean(name, ENCODERS)}; there are: {', '.join(ENCODERS)}")
    return ENCODERS[name]
