"""Blocks against timm's, both paths of attention, fast dropout masks, and activations that are computed twice."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from twins import KINDS, TRAINED, batch_of, build

from dabsmix.model.encoder import AttentionPath, Block, Dropout, fast_mask, make_encoder
from dabsmix.model.shapes import EncoderConfig
from dabsmix.registry import algorithm_class
from dabsmix.spec import Grid

CONFIG = EncoderConfig(width=24, depth=1, heads=3, head_dim=8, mlp=40)
PADDING = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()[:, None, None, :].expand(-1, 1, 7, -1)


class TimmHeads(TimmAttention):  # type: ignore[misc]  # timm is untyped
    def __init__(self, dim: int, *args: object, **kwargs: object) -> None:
        super().__init__(dim, *args, **{**kwargs, "attn_head_dim": 8})


@pytest.mark.parametrize("mask", [None, PADDING], ids=["full", "padded"])
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, qkv_bias=True, dropout=0.0, eps=1e-6)], ids=["dabs", "vit"])
def test_a_block_has_the_weights_features_and_gradients_of_timms(config: EncoderConfig, mask: Tensor | None) -> None:
    torch.manual_seed(0)
    ours = Block(config, "fused", "torch")
    torch.manual_seed(0)
    theirs = TimmBlock(
        config.width,
        config.heads,
        mlp_ratio=config.mlp / config.width,
        qkv_bias=config.qkv_bias,
        proj_drop=config.dropout,
        norm_layer=partial(nn.LayerNorm, eps=config.eps),
        attn_layer=TimmHeads,
    )
    x, outputs = torch.randn(2, 7, config.width), []
    for block in (ours, theirs):
        torch.manual_seed(1)
        hidden = block(x, mask) if block is ours else block(x, attn_mask=mask)
        hidden.square().sum().backward()
        outputs.append([hidden, *block.state_dict().values(), *(p.grad for p in block.parameters())])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


# --- the path of attention


@pytest.mark.parametrize("mask", [None, PADDING], ids=["full", "padded"])
def test_explicit_attention_equals_fused(mask: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dabsmix.model.encoder.explicit_is_faster", lambda query: True)
    outputs = []
    for path in ("fused", "fastest"):
        torch.manual_seed(0)
        block = Block(CONFIG, path, "torch").double()
        hidden = block(torch.randn(2, 7, 24, dtype=torch.float64), mask)
        hidden.square().sum().backward()
        outputs.append([hidden, *(p.grad for p in block.parameters())])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def is_explicit(path: AttentionPath, dtype: torch.dtype, length: int = 7, grad: bool = True) -> bool:
    block = Block(CONFIG, path, "torch").to(dtype)
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        block(torch.randn(1, length, 24, dtype=dtype), None)
    return torch.ops.aten.bmm in counter.get_flop_counts()["Global"]


def test_attention_is_explicit_only_for_bf16_with_gradients() -> None:
    assert is_explicit("fastest", torch.bfloat16)
    assert not is_explicit("fastest", torch.bfloat16, grad=False)
    assert not is_explicit("fastest", torch.bfloat16, length=1025)
    assert not is_explicit("fastest", torch.float32)
    assert not is_explicit("fused", torch.bfloat16)


# --- dropout masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_fast_masks_zero_the_rate_independently_of_place_and_neighbours(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n = 1 << 20
    mask = fast_mask(torch.empty(n // 8, 8, dtype=dtype), rate)
    zeroed = (mask == 0).double()
    assert mask.dtype == dtype
    assert torch.unique(mask).tolist() == pytest.approx(
        [0, 1 / (1 - rate)], rel=4e-3 if dtype == torch.bfloat16 else 1e-5
    )
    spread = (rate * (1 - rate)) ** 0.5  # of one entry; 5 standard errors below
    assert abs(zeroed.mean() - rate) < 5 * spread / n**0.5
    assert (zeroed.mean(dim=0) - rate).abs().max() < 5 * spread / (n // 8) ** 0.5  # lanes of a word
    flat = (zeroed.flatten() - rate) / spread
    for lag in (1, 2, 3, 4, 5, 8, 64):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 5 / (n - lag) ** 0.5


def test_fast_masks_follow_from_the_seed() -> None:
    def drawn(seed: int, threads: int = 1, size: int = 1003) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        try:
            return torch.cat([fast_mask(torch.empty(size), 0.3), fast_mask(torch.empty(size), 0.3)])
        finally:
            torch.set_num_threads(before)

    assert torch.equal(drawn(1), drawn(1, threads=2))
    assert not torch.equal(drawn(1)[:1003], drawn(1)[1003:])
    both = (drawn(1, size=1 << 16) == 0) & (drawn(2, size=1 << 16) == 0)  # like two processes in one step
    assert abs(both.double().mean() - 0.09) < 5 * (0.09 * 0.91 / (1 << 17)) ** 0.5


@pytest.mark.slow
def test_fast_masks_are_those_of_another_process() -> None:
    torch.manual_seed(5)
    digest = hashlib.sha256(fast_mask(torch.empty(4096), 0.1).numpy().tobytes()).hexdigest()
    program = (
        "import hashlib, torch; from dabsmix.model.encoder import fast_mask; torch.manual_seed(5); "
        "print(hashlib.sha256(fast_mask(torch.empty(4096), 0.1).numpy().tobytes()).hexdigest())"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == digest


def test_dropout_with_fast_masks_scales_and_sends_gradients_where_it_keeps() -> None:
    dropout = Dropout(0.25, "fast")
    x = torch.ones(64, 65, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert 0.2 < float((y == 0).float().mean()) < 0.3
    assert torch.equal(dropout.eval()(x), x)


def test_an_encoder_draws_all_of_its_masks_in_the_same_way() -> None:
    encoder = make_encoder("tiny", (Grid(1, (4, 4), (2, 2)),), dropout_masks="fast", attention="fastest")
    kinds = [module.masks for module in encoder.modules() if isinstance(module, Dropout)]
    assert kinds == ["fast"] * (1 + 3 * 4)
    assert not any(isinstance(module, nn.Dropout) for module in encoder.modules())


# --- activations computed twice


@pytest.mark.parametrize("name", TRAINED)
def test_activations_computed_twice_give_the_same_gradients_with_dropout(name: str) -> None:
    for kind in KINDS:
        if algorithm_class(name).needs_labels and kind != KINDS[0]:
            continue
        gradients = []
        for twice in (False, True):
            algorithm = build(name, kind, dropout=0.3)
            algorithm.encoder.checkpoint_activations = twice
            torch.manual_seed(3)
            batch = batch_of(kind, label=algorithm.needs_labels, num_views=algorithm.num_views)
            loss = algorithm(batch).value
            loss.backward()
            gradients.append([loss.detach(), *(p.grad for p in algorithm.parameters() if p.grad is not None)])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_checkpointing_stores_fewer_activations() -> None:
    saved = []
    for twice in (False, True):
        encoder = make_encoder("tiny", (Grid(1, (8, 8), (2, 2)),))
        encoder.checkpoint_activations = twice
        sizes: list[int] = []

        def hold(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
            encoder((torch.randn(4, 1, 8, 8),))
        saved.append(sum(sizes))
    assert saved[1] < saved[0] / 5
