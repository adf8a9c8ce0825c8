"""Encoders that read an example as a whole and have no tokens: i-Mix's MLP for tables and its ResNets.

What is mixed is the raw input. Batch norm takes its statistics over the batch of all processes, where the i-Mix
reference takes each GPU's own (and shuffles the batch of the momentum encoder against what that gives away).

B examples, E numbers of a table's row, P pixels, C channels, D width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from dabsmix.errors import UserError
from dabsmix.model.batch_norm import GlobalBatchNorm, GlobalBatchNorm2d
from dabsmix.model.contract import Embedded, Encoder
from dabsmix.model.shapes import MLPConfig, ResNetConfig
from dabsmix.spec import Grid, Spec, Table, describe

__all__ = ["MLP", "ResNet"]

SMALL = 64
"""Images up to this many pixels a side get i-Mix's stem for CIFAR."""


class MLP(Encoder):
    """A perceptron on the rows of tables (i-Mix, Lee et al. 2021, its backbone for CovType and HIGGS).

    A row is its numeric columns as they are, 0 where a cell is empty, and for each categorical column one number per
    category, all of them 0 where the cell is empty. The reference's code puts a linear stage to 64 units per kind of
    column before the five layers that the paper describes; here there are the five layers.

    Args:
        specs: tables.
        config: the widths.

    Raises:
        UserError: an input is not a table.
    """

    has_tokens = False
    has_batch_norm = True
    config: MLPConfig

    def __init__(self, specs: tuple[Spec, ...], config: MLPConfig) -> None:
        super().__init__()
        tables = [spec for spec in specs if isinstance(spec, Table)]
        if len(tables) < len(specs):
            raise UserError(f"--encoder mlp reads tables, and these data are {describe(specs)}: use another --encoder")
        self.specs = specs
        self.config = config
        self.embedders = nn.ModuleList()
        self.grids = ((1,),)  # the whole row
        self.width = config.widths[-1] // config.pieces
        sizes = [sum(max(1, k) for k in spec.cardinalities) for spec in tables]
        *hidden, last = config.widths
        blocks: list[nn.Module] = []
        width = sum(sizes)
        for wider in hidden:
            blocks.append(nn.Sequential(nn.Linear(width, wider), GlobalBatchNorm(wider), nn.ReLU()))
            width = wider
        self.blocks = nn.ModuleList([*blocks, nn.Linear(width, last)])

    def embed(self, inputs: tuple[Tensor, ...]) -> Embedded:
        """The rows of ``(B, num_features)`` tables, one after another as one row of numbers: ``(B, 1, E)``.

        Raises:
            ValueError: the number of inputs or the shape of one differs from the specs.
        """
        if [x.shape[1:] for x in inputs] != [(spec.num_tokens,) for spec in self.specs]:
            raise ValueError(f"got inputs of {[tuple(x.shape) for x in inputs]} for {describe(self.specs)}")
        rows = [_row(spec, x) for spec, x in zip(self.specs, inputs, strict=True) if isinstance(spec, Table)]
        return Embedded(torch.cat(rows, dim=1)[:, None], None)

    def encode(self, embedded: Embedded) -> Tensor:
        """The one feature, ``(B, 1, D)``."""
        x = embedded.tokens[:, 0]
        for block in self.blocks:
            x = block(x)
        return reduce(x, "b (d p) -> b 1 d", "max", p=self.config.pieces)


def _row(spec: Table, x: Tensor) -> Tensor:
    """``(B, num_features)`` to ``(B, E)``: categories as one number each, empty cells as zeros."""
    columns = []
    for column, cardinality in zip(x.unbind(dim=1), spec.cardinalities, strict=True):
        empty = column.isnan()
        filled = column.masked_fill(empty, 0.0)
        if cardinality:
            columns.append(F.one_hot(filled.long(), cardinality).to(x.dtype).masked_fill(empty[:, None], 0.0))
        else:
            columns.append(filled[:, None])
    return torch.cat(columns, dim=1)


class ResNet(Encoder):
    """A residual network on the pixels of one image or spectrogram (i-Mix, Lee et al. 2021; He et al. 2016).

    Convolutions start as in He et al. 2015, by fan-out, and no batch norm starts at 0, as in the i-Mix reference.

    Args:
        specs: one grid of two axes; its patches do not matter here.
        config: the blocks.

    Raises:
        UserError: the data are anything else.
    """

    has_tokens = False
    has_batch_norm = True
    config: ResNetConfig

    def __init__(self, specs: tuple[Spec, ...], config: ResNetConfig) -> None:
        super().__init__()
        if len(specs) != 1 or not isinstance(spec := specs[0], Grid) or len(spec.size) != 2:
            raise UserError(
                f"a ResNet reads one image or spectrogram, and these data are {describe(specs)}: use another --encoder"
            )
        self.specs = specs
        self.config = config
        self.embedders = nn.ModuleList()
        self.grids = (spec.size,)
        kind = BasicBlock if config.block == "basic" else Bottleneck
        self.width = 512 * kind.expansion
        net = TimmResNet(
            kind,
            list(config.layers),
            num_classes=0,
            in_chans=spec.channels,
            norm_layer=GlobalBatchNorm2d,
            zero_init_last=False,
        )
        stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool)
        if max(spec.size) <= SMALL:
            first = nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
            stem = nn.Sequential(first, net.bn1, net.act1)
        self.blocks = nn.ModuleList([stem, net.layer1, net.layer2, net.layer3, net.layer4])

    def embed(self, inputs: tuple[Tensor, ...]) -> Embedded:
        """The pixels of an image ``(B, C, H, W)``, row by row: ``(B, P, C)``.

        Raises:
            ValueError: the number of inputs or the shape of one differs from the specs.
        """
        (spec,) = self.specs
        assert isinstance(spec, Grid)
        if [x.shape[1:] for x in inputs] != [(spec.channels, *spec.size)]:
            raise ValueError(f"got inputs of {[tuple(x.shape) for x in inputs]} for {describe(self.specs)}")
        return Embedded(rearrange(inputs[0], "b c h w -> b (h w) c"), None)

    def encode(self, embedded: Embedded) -> Tensor:
        """The one feature, ``(B, 1, D)``: the mean over the places of the last stage."""
        height, width = self.grids[0]
        x = rearrange(embedded.tokens, "b (h w) c -> b c h w", h=height, w=width)
        for block in self.blocks:
            x = block(x)
        return reduce(x, "b d h w -> b 1 d", "mean")
