"""Initial weights instead of random ones: those of another encoder, or of a vision transformer from timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dabsmix.errors import UserError, did_you_mean
from dabsmix.model.encoder import Encoder
from dabsmix.model.shapes import TIMM

__all__ = ["Initialised", "take", "timm_name", "timm_weights"]

PLAIN = re.compile(
    r"(blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])|norm|fc_norm|pre_logits\.fc|head)\.(weight|bias)"
)
"""Weights of timm that a plain vision transformer has beside its embedding, those of its classifier among them."""


class Initialised(NamedTuple):
    """Names of the weights that were loaded, and of those that keep their random values."""

    loaded: tuple[str, ...]
    random: tuple[str, ...]


def take(encoder: Encoder, weights: Mapping[str, Tensor]) -> Initialised:
    """Put the weights of equal name and shape into an encoder, in place."""
    random = encoder.state_dict()
    fitting = {name: weights[name] for name in random if name in weights and weights[name].shape == random[name].shape}
    encoder.load_state_dict(random | fitting)
    return Initialised(tuple(fitting), tuple(name for name in random if name not in fitting))


def timm_name(name: str) -> str:
    """The full name of a timm model, including how it was trained: ``vit_base_patch16_224.augreg2_in21k_ft_in1k``.

    Raises:
        UserError: timm has no pretrained model of this name.
    """
    import timm

    known = timm.list_models(pretrained=True)
    if name not in known and name.partition(".")[0] not in {model.partition(".")[0] for model in known}:
        raise UserError(f"--init {TIMM}{name}: timm has no pretrained model of this name{did_you_mean(name, known)}")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise UserError(f"--init {TIMM}{name}: timm has no such weights{did_you_mean(name, known)}")
    return f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)


def timm_weights(name: str) -> dict[str, Tensor]:
    """A timm vision transformer's weights under the names that they have here, for an encoder of one image.

    timm embeds a patch by a convolution, we by a Linear on its pixels in the order row, column, channel.

    Raises:
        UserError: the model cannot be fetched, or is not a plain vision transformer.
    """
    import timm

    try:
        with torch.random.fork_rng(devices=[]):  # its random initial weights must not change other draws
            model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--init {TIMM}{name}: cannot be fetched ({reason}); check the network and the name") from error
    state = dict(model.state_dict())
    try:
        patch = state.pop("patch_embed.proj.weight")
        renamed = {
            "cls": state.pop("cls_token"),
            "positions": state.pop("pos_embed"),
            "embedders.0.linear.weight": rearrange(patch, "d c h w -> d (h w c)"),
            "embedders.0.linear.bias": state.pop("patch_embed.proj.bias"),
        }
    except KeyError as error:
        raise UserError(f"--init {TIMM}{name}: not a plain vision transformer (it has no {error})") from error
    # without them the same weights would compute other features: layer scale, register tokens, a norm before the blocks
    if foreign := [weight for weight in state if not PLAIN.fullmatch(weight)]:
        raise UserError(f"--init {TIMM}{name}: not a plain vision transformer (it has {foreign[0]!r})")
    return renamed | state
