"""The shared ViT: its shape, its attention against plain einsums, and independence of padding."""

from dataclasses import replace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from dabsmix.errors import UserError
from dabsmix.model.encoder import (
    ENCODERS,
    AttentionPath,
    Dropout,
    Embedded,
    EncoderConfig,
    Transformer,
    make_encoder,
    pool,
)
from dabsmix.spec import Grid, Spec, Table, Tokens

SMALL = EncoderConfig(width=12, depth=2, heads=3, head_dim=5, mlp=20)
TEXT = Tokens(8, 11, pad=0)
IDS = torch.tensor([[4, 2, 9, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8], [5, 5, 5, 5, 5, 0, 0, 0]])


def small(specs: tuple[Spec, ...], **changes: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(specs, replace(SMALL, **changes)).double().eval()  # type: ignore[arg-type]  # keywords of the test


def encode_plainly(encoder: Transformer, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """A plain pre-norm transformer: attention as einsums over every pair, with zero weight for padding."""
    config = encoder.config
    state: dict[str, Tensor] = encoder.state_dict()
    x = torch.cat([state["cls"].expand(len(tokens), -1, -1), tokens], dim=1) + state["positions"]
    for i in range(config.depth):
        p = {key.removeprefix(f"blocks.{i}."): value for key, value in state.items() if key.startswith(f"blocks.{i}.")}

        h = F.layer_norm(x, (config.width,), p["norm1.weight"], p["norm1.bias"], config.eps)
        qkv = h @ p["attn.qkv.weight"].T
        if config.qkv_bias:
            qkv = qkv + p["attn.qkv.bias"]
        q, k, v = qkv.view(*x.shape[:2], 3, config.heads, config.head_dim).unbind(2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / config.head_dim**0.5
        weight = scores.exp()
        if mask is not None:
            weight = weight * torch.cat([torch.ones(len(mask), 1), mask], dim=1)[:, None, None, :]
        weight = weight / weight.sum(dim=-1, keepdim=True)
        mixed = torch.einsum("bhij,bjhd->bihd", weight, v).flatten(2)
        x = x + mixed @ p["attn.proj.weight"].T + p["attn.proj.bias"]

        h = F.layer_norm(x, (config.width,), p["norm2.weight"], p["norm2.bias"], config.eps)
        h = F.gelu(h @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
        x = x + h @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]
    if config.final_norm:
        x = F.layer_norm(x, (config.width,), state["norm.weight"], state["norm.bias"], config.eps)
    return x


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "final_norm": True, "head_dim": 4}], ids=["dabs", "vit"])
@pytest.mark.parametrize("padded", [False, True])
def test_encode_equals_plain_einsums(changes: dict[str, object], padded: bool) -> None:
    encoder = small((TEXT,), **changes)
    tokens, mask = encoder.embed((IDS,))
    if not padded:
        mask = None
    torch.testing.assert_close(
        encoder.encode(Embedded(tokens, mask)), encode_plainly(encoder, tokens, mask), rtol=1e-9, atol=1e-9
    )


def test_pooled_mean_is_over_cls_and_real_tokens() -> None:
    encoder = small((TEXT,))
    embedded = encoder.embed((IDS,))
    hidden = encode_plainly(encoder, *embedded)
    pooled = encoder((IDS,))
    for b, length in enumerate((3, 8, 5)):
        torch.testing.assert_close(pooled.mean[b].double(), hidden[b, : 1 + length].mean(dim=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(pooled.cls[b].double(), hidden[b, 0], rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_the_values_of_padding() -> None:
    encoder = small((TEXT,))
    before = encoder.encode(encoder.embed((IDS,)))
    pooled = encoder((IDS,)).mean
    table = cast(nn.Embedding, encoder.embedders[0].table)
    with torch.no_grad():
        table.weight[0] = 1e3
    after = encoder.encode(encoder.embed((IDS,)))
    for b, length in enumerate((3, 8, 5)):
        torch.testing.assert_close(after[b, : 1 + length], before[b, : 1 + length])
    torch.testing.assert_close(encoder((IDS,)).mean, pooled)


def test_features_do_not_depend_on_the_amount_of_padding() -> None:
    long = small((TEXT,))
    short = small((replace(TEXT, length=5),))
    state = long.state_dict()
    short.load_state_dict(state | {"positions": state["positions"][:, :6]})
    torch.testing.assert_close(long((IDS[[0, 2]],)).mean, short((IDS[[0, 2], :5],)).mean)
    # nor on what else is in the batch
    torch.testing.assert_close(long((IDS[:1],)).mean, long((IDS,)).mean[:1])


def test_padding_gets_no_gradient() -> None:
    encoder = small((TEXT,))
    tokens, mask = encoder.embed((IDS,))
    tokens = tokens.detach().requires_grad_()
    loss = encoder.pool(encoder.encode(Embedded(tokens, mask)), mask).mean.square().sum()
    (gradient,) = torch.autograd.grad(loss, tokens)
    assert mask is not None
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).any(dim=-1).all()


def test_attend_padding_lets_it_take_part_in_attention_and_in_the_mean() -> None:
    masked, attending = small((TEXT,)), small((TEXT,), attend_padding=True)
    attending.load_state_dict(masked.state_dict())
    hidden = encode_plainly(attending, attending.embed((IDS,)).tokens, None)
    torch.testing.assert_close(attending((IDS,)).mean.double(), hidden.mean(dim=1), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(attending((IDS,)).mean[0], masked((IDS,)).mean[0])
    torch.testing.assert_close(attending((IDS,)).mean[1], masked((IDS,)).mean[1])  # the example without padding


def test_an_example_of_padding_alone_has_the_features_of_cls() -> None:
    pooled = small((TEXT,))((torch.zeros(1, 8, dtype=torch.long),))
    assert pooled.mean.isfinite().all()
    torch.testing.assert_close(pooled.mean, pooled.cls)


def test_pooling_is_float32_under_autocast_with_and_without_padding() -> None:
    hidden, mask = torch.randn(2, 6, 4), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for candidate in (None, mask):
            pooled = pool(hidden, candidate)
            assert pooled.mean.dtype == pooled.cls.dtype == torch.float32
        torch.testing.assert_close(pooled.mean[0], hidden[0, :3].mean(dim=0))


def test_several_inputs_are_concatenated_in_order() -> None:
    grid, table = Grid(1, (4, 4), (2, 2)), Table(3)
    encoder = small((grid, TEXT, table))
    inputs = (torch.randn(3, 1, 4, 4).double(), IDS, torch.randn(3, 3).double())
    tokens, mask = encoder.embed(inputs)
    assert encoder.num_tokens == tokens.shape[1] == 4 + 8 + 3
    parts = [embedder(x)[0] for embedder, x in zip(encoder.embedders, inputs, strict=True)]
    assert torch.equal(tokens, torch.cat(parts, dim=1))
    assert mask is not None
    assert torch.equal(mask[:, :4], torch.ones(3, 4).bool())
    assert torch.equal(mask[:, 4:12], IDS != 0)
    assert torch.equal(mask[:, 12:], torch.ones(3, 3).bool())
    assert small((grid, table)).embed((inputs[0], inputs[2])).mask is None
    with pytest.raises(ValueError, match="2 inputs"):
        encoder.embed(inputs[:2])


def test_dabs_has_the_shape_of_the_reference() -> None:
    encoder = make_encoder("dabs", (Grid(3, (32, 32), (4, 4)),))
    assert isinstance(encoder, Transformer)
    block = 2 * 256 + 256 * (3 * 512) + (512 * 256 + 256) + 2 * 256 + (256 * 512 + 512) + (512 * 256 + 256)
    expected = (48 * 256 + 256) + 256 + 65 * 256 + 12 * block
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert isinstance(encoder.norm, nn.Identity)
    assert encoder.dropout.p == 0.1
    assert len(encoder.blocks) == 12
    state = encoder.state_dict()
    for i, layer in enumerate(encoder.blocks):
        assert state[f"blocks.{i}.attn.qkv.weight"].shape == (1536, 256)
        assert f"blocks.{i}.attn.qkv.bias" not in state
        assert state[f"blocks.{i}.attn.proj.weight"].shape == (256, 512)
        assert state[f"blocks.{i}.mlp.fc1.weight"].shape == (512, 256)
        rates = {name: m.p for name, m in layer.named_modules() if isinstance(m, Dropout)}
        assert rates == {"attn.proj_drop": 0.1, "mlp.drop1": 0.1, "mlp.drop2": 0.1}
        norms = [m for m in layer.modules() if isinstance(m, nn.LayerNorm)]
        assert [m.eps for m in norms] == [1e-5, 1e-5]
    assert encoder.positions.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", [name for name, config in ENCODERS.items() if isinstance(config, EncoderConfig)])
def test_named_encoders_keep_head_width_and_sequence(name: str) -> None:
    encoder = make_encoder(name, (Grid(1, (4, 4), (2, 2)),)).eval()
    with torch.no_grad():
        hidden = encoder.encode(encoder.embed((torch.randn(2, 1, 4, 4),)))
    assert hidden.shape == (2, 5, encoder.width)
    assert hidden.isfinite().all()


def test_vit_names_have_timm_s_transformer() -> None:
    import timm

    for name in ("vit_small", "vit_base", "vit_large"):
        with torch.device("meta"):
            ours = make_encoder(name, (Grid(3, (224, 224), (16, 16)),)).state_dict()
            theirs = timm.create_model(f"{name}_patch16_224", num_classes=0).state_dict()
        blocks = {key: value.shape for key, value in theirs.items() if key.startswith(("blocks", "norm"))}
        assert {key: value.shape for key, value in ours.items() if key.startswith(("blocks", "norm"))} == blocks


def test_equal_seeds_give_equal_weights() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(make_encoder("tiny", (Table(3),)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["cls"], states[2]["cls"])


def test_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        make_encoder("tinny", (Table(3),))


@pytest.mark.parametrize("path", ["fused", "fastest"])
def test_blocks_compile_as_one(path: AttentionPath) -> None:
    """A graph for each block would be more than torch.compile keeps, and the deeper blocks would run uncompiled."""
    counter = CompileCounter()
    encoder = make_encoder("tiny", (Table(4),), attention=path)
    for block in encoder.blocks:
        block.compile(backend=counter)
    with torch.autocast("cpu", torch.bfloat16, enabled=path == "fastest"):
        encoder((torch.randn(3, 4),))
    assert counter.frame_count == 1
