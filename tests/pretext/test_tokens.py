"""The mixing operators and views against plain loops, and properties of any mixture."""

import itertools
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dabsmix.errors import UserError
from dabsmix.model.encoder import Embedded
from dabsmix.pretext.contrast import mixed_cross_entropy
from dabsmix.pretext.tokens import (
    Mixed,
    choose,
    corrupted,
    cutmix,
    draw_block,
    draw_order,
    draw_pairs,
    mean_over,
    mix,
    mixup,
    patch_mix,
)
from dabsmix.pretext.views import NOISE, View, draw_inputmix, two_views
from dabsmix.registry import algorithm_class
from dabsmix.spec import Grid, Spec, Table, Tokens
from dabsmix.testing import SPECS, random_batch, small_encoder

B, L, D = 8, 9, 4


def random_tokens(seed: int, *, padded: bool) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(B, L, D, generator=generator, dtype=torch.float64)
    length = torch.randint(1, L + 1, (B, 1), generator=generator)
    return Embedded(tokens, torch.arange(L) < length if padded else None)


def random_weight(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 1, size=B))


def real(embedded: Embedded, i: int, p: int) -> bool:
    return embedded.mask is None or bool(embedded.mask[i, p])


def length_of(embedded: Embedded, i: int) -> int:
    return sum(real(embedded, i, p) for p in range(L))


# --- each operator and its plain twin


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_mixup_is_the_weighted_sum_of_tokens(seed: int, padded: bool) -> None:
    own, partner, weight = (
        random_tokens(seed, padded=padded),
        random_tokens(seed + 100, padded=padded),
        random_weight(seed),
    )
    mixed = mixup(own, partner, weight)
    for i in range(B):
        total = 0.0
        for p in range(L):
            w = float(weight[i]) if real(own, i, p) and real(partner, i, p) else 1.0
            expected = w * own.tokens[i, p] + (1 - w) * partner.tokens[i, p]
            torch.testing.assert_close(mixed.embedded.tokens[i, p], expected)
            total += w * real(own, i, p)
        assert float(mixed.weight[i]) == pytest.approx(total / length_of(own, i))
    assert mixed.embedded.mask is own.mask


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_patch_mixing_takes_the_first_positions_in_order(seed: int, padded: bool) -> None:
    own, partner, weight = (
        random_tokens(seed, padded=padded),
        random_tokens(seed + 100, padded=padded),
        random_weight(seed),
    )
    order = torch.from_numpy(np.random.default_rng(seed).random((B, L)))
    mixed = patch_mix(own, partner, weight, order)
    for i in range(B):
        both = [p for p in range(L) if real(own, i, p) and real(partner, i, p)]
        count = min(round((1 - float(weight[i])) * length_of(own, i)), len(both))
        replaced = sorted(both, key=lambda p: float(order[i, p]))[:count]
        for p in range(L):
            source = partner if p in replaced else own
            assert torch.equal(mixed.embedded.tokens[i, p], source.tokens[i, p])
        assert float(mixed.weight[i]) == pytest.approx(1 - count / length_of(own, i))
    assert mixed.embedded.mask is own.mask


@pytest.mark.parametrize("padded", [False, True])
def test_cutmix_replaces_the_block_and_weighs_the_rest(padded: bool) -> None:
    own, partner = random_tokens(0, padded=padded), random_tokens(1, padded=padded)
    block = torch.from_numpy(np.random.default_rng(2).random((B, L)) < 0.4)
    mixed = cutmix(own, partner, block)
    for i in range(B):
        replaced = [p for p in range(L) if block[i, p] and real(own, i, p) and real(partner, i, p)]
        for p in range(L):
            assert torch.equal(mixed.embedded.tokens[i, p], (partner if p in replaced else own).tokens[i, p])
        assert float(mixed.weight[i]) == pytest.approx(1 - len(replaced) / length_of(own, i))


@pytest.mark.parametrize(
    "specs",
    [(Grid(1, (6, 10), (1, 1)),), (Grid(1, (7,), (1,)),), (Grid(1, (4, 5, 6), (1, 1, 1)),), (Table(5), Tokens(7, 3))],
)
@pytest.mark.parametrize("one_block", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_cutmix_block_is_a_clipped_box_of_the_area(
    specs: tuple[Grid | Table | Tokens, ...], one_block: bool, padded: bool
) -> None:
    num = sum(spec.num_tokens for spec in specs)
    mask = torch.ones(B, num, dtype=torch.bool)
    if padded and isinstance(specs[-1], Tokens):
        mask[:, -7:] = torch.arange(7) < torch.arange(B)[:, None].clamp(1, 7)
    embedded = Embedded(torch.zeros(B, num, D), mask if padded else None)
    weight = torch.full((B,), 0.6) if one_block else random_weight(3).float()
    block = draw_block(np.random.default_rng(4), small_encoder(specs).grids, embedded, weight, one_block=one_block)

    rng = np.random.default_rng(4)  # the same draws, read one by one
    start = 0
    for spec in specs:
        shape = spec.shape if isinstance(spec, Grid) else (spec.num_tokens,)
        draws = [np.broadcast_to(rng.random(1 if one_block else B, dtype=np.float32), B) for _ in shape]
        for i in range(B):
            own = int(mask[i, start : start + spec.num_tokens].sum())
            lengths = (own,) if len(shape) == 1 else shape
            sides = [int(n * (1 - float(weight[i])) ** (1 / len(shape)) + 1e-4) for n in lengths]  # 5 * 0.4 is 2
            centres = [int(u[i] * n) for u, n in zip(draws, lengths, strict=True)]
            for p, place in enumerate(itertools.product(*(range(n) for n in lengths))):
                inside = all(
                    c - side // 2 <= at < c - side // 2 + side
                    for c, side, at in zip(centres, sides, place, strict=True)
                )
                assert bool(block[i, start + p]) == inside
        start += spec.num_tokens


@pytest.mark.parametrize("mixing", ["patch", "cutmix"])
@pytest.mark.parametrize("spec", [Tokens(64, 30, pad=0), Grid(1, (4, 4), (1, 1)), Table(7)])
def test_an_example_keeps_at_least_half_of_its_tokens(mixing: Literal["patch", "cutmix"], spec: Spec) -> None:
    encoder, batch = small_encoder((spec,)), random_batch((spec,), 64)
    view = View(encoder, batch.views[0], encoder.embed(batch.views[0]))
    length = view.own.real.sum(dim=1)
    weights = torch.stack([mix(view, np.random.default_rng(s), mixing, 1.0, "example")[0].weight for s in range(20)])
    assert (weights * length >= length / 2 - 0.5).all()  # to within rounding
    assert (weights < 1).float().mean() > 0.3  # and it is mixed


@pytest.mark.parametrize("num", [1, 2])
def test_inputmix_adds_auxiliaries_in_every_row_of_the_view(num: int) -> None:
    specs = SPECS["image+text"]
    encoder, batch = small_encoder(specs).double(), random_batch(specs, B)
    inputs = (batch.views[0][0].double(), batch.views[0][1])
    clean = encoder.embed(inputs)
    assert clean.mask is not None
    drawn = draw_inputmix(np.random.default_rng(0), B, num, torch.device("cpu"))
    view = View(encoder, inputs, clean, clean=False, inputmix=drawn)
    for i in range(B):
        weights = drawn.weights[i].tolist()
        assert sum(weights) == pytest.approx(1)
        assert weights[0] == max(weights)
        for p in range(clean.tokens.shape[1]):
            expected = weights[0] * clean.tokens[i, p]
            for w, other in zip(weights[1:], drawn.rows[i].tolist(), strict=True):
                both = clean.mask[i, p] and clean.mask[other, p]
                expected = expected + w * clean.tokens[other if both else i, p]
            torch.testing.assert_close(view.own.tokens[i, p], expected)
    order = torch.tensor([3, 3, 0])
    torch.testing.assert_close(view.rows(order).tokens, view.own.tokens[order])
    assert view.own.mask is clean.mask


# --- properties


@pytest.mark.parametrize("name", ["imix_npair", "imix_simclr", "imix_supcon", "imix_moco", "imix_byol"])
@pytest.mark.parametrize(("mixing", "least"), [("patch", 2), ("cutmix", 3)])
def test_tokens_too_few_to_exchange_are_refused(name: str, mixing: str, least: int) -> None:
    build: Any = algorithm_class(name)
    build(small_encoder((Table(least),)), mixing=mixing)
    message = f"--mixing {mixing} needs at least {least} tokens per example, got {least - 1}"
    with pytest.raises(UserError, match=message):
        build(small_encoder((Table(least - 1),)), mixing=mixing)


def test_weight_one_returns_the_tokens_bit_for_bit() -> None:
    own, partner, one = random_tokens(0, padded=True), random_tokens(1, padded=True), torch.ones(B)
    order = torch.rand(B, L)
    nowhere = draw_block(np.random.default_rng(0), ((L,),), own, one, one_block=False)
    for mixed in (mixup(own, partner, one), patch_mix(own, partner, one, order), cutmix(own, partner, nowhere)):
        assert torch.equal(mixed.embedded.tokens, own.tokens)
        assert torch.equal(mixed.weight, one.to(mixed.weight))


@pytest.mark.parametrize("seed", range(3))
def test_weighted_cross_entropies_equal_that_of_the_mixed_label(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(B, B))) * 5
    own, partner, weight = torch.arange(B), torch.from_numpy(rng.permutation(B)), random_weight(seed)
    costs = mixed_cross_entropy(logits, own, partner, weight)
    for i in range(B):
        label = [0.0] * B
        label[i] += float(weight[i])
        label[int(partner[i])] += 1 - float(weight[i])
        total = math.log(sum(math.exp(float(x)) for x in logits[i]))
        assert float(costs[i]) == pytest.approx(
            sum(v * (total - float(x)) for v, x in zip(label, logits[i], strict=True))
        )


@pytest.mark.parametrize("mixer", ["mixup", "patch", "cutmix"])
def test_padding_is_neither_changed_nor_mixed_in(mixer: str) -> None:
    """With NaN as padding, no real token may become NaN, and padding must not change."""
    own, partner, weight = random_tokens(0, padded=True), random_tokens(1, padded=True), random_weight(0)
    assert own.mask is not None
    assert partner.mask is not None
    padding = ~own.mask
    own = Embedded(own.tokens.masked_fill(padding[..., None], torch.nan), own.mask)
    partner = Embedded(partner.tokens.masked_fill(~partner.mask[..., None], torch.nan), partner.mask)
    mixed: Mixed
    match mixer:
        case "mixup":
            mixed = mixup(own, partner, weight)
        case "patch":
            mixed = patch_mix(own, partner, weight, torch.rand(B, L))
        case _:
            mixed = cutmix(own, partner, torch.rand(B, L) < 0.5)
    assert torch.equal(mixed.embedded.tokens.isnan().any(dim=-1), padding)
    assert mixed.weight.isfinite().all()


def test_mixing_tokens_is_mixing_inputs_where_the_embedder_is_affine() -> None:
    specs = (Grid(3, (8, 8), (2, 2)), Table(6))
    encoder = small_encoder(specs).double()
    one = tuple(x.double().nan_to_num() for x in random_batch(specs, B, seed=1).views[0])
    two = tuple(x.double().nan_to_num() for x in random_batch(specs, B, seed=2).views[0])
    weight = random_weight(0)
    shares = [weight.view(-1, *[1] * (x.dim() - 1)) for x in one]
    inputs = tuple(w * a + (1 - w) * b for w, a, b in zip(shares, one, two, strict=True))
    mixed = mixup(encoder.embed(one), encoder.embed(two), weight)
    torch.testing.assert_close(mixed.embedded.tokens, encoder.embed(inputs).tokens)


def test_kept_weight_of_patch_mixing_has_the_mean_of_the_larger_part() -> None:
    num = 50
    rng = np.random.default_rng(0)
    embedded = Embedded(torch.zeros(20_000, num, 1), None)
    pairs = draw_pairs(rng, embedded, 1.0)
    mixed = patch_mix(embedded, embedded, pairs.weight, draw_order(rng, embedded))
    assert float(mixed.weight.mean()) == pytest.approx(0.75, abs=0.5 / num)  # E max(u, 1-u) = 3/4 for uniform u


def test_pairs_are_a_permutation_and_weights_keep_at_least_half() -> None:
    embedded = Embedded(torch.zeros(B, L, D), None)
    pairs = draw_pairs(np.random.default_rng(0), embedded, 1.0)
    assert sorted(pairs.partner.tolist()) == list(range(B))
    assert pairs.weight.min() >= 0.5
    assert len(set(pairs.weight.tolist())) == B
    assert float(pairs.mean_weight) == pytest.approx(float(pairs.weight.mean()))
    assert len(set(draw_pairs(np.random.default_rng(0), embedded, 1.0, one_weight=True).weight.tolist())) == 1


def test_every_position_is_equally_likely() -> None:
    allowed = torch.tensor([[True, True, False, True, True]]).expand(4000, -1)
    order = draw_order(np.random.default_rng(0), Embedded(torch.zeros(4000, 5, 1), None))
    chosen = choose(order, torch.full((4000,), 2), allowed)
    assert (chosen.sum(dim=1) == 2).all()
    share = chosen.double().mean(dim=0)
    assert share[2] == 0
    assert (share[[0, 1, 3, 4]] - 0.5).abs().max() < 0.04  # five standard deviations


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("least", [1, 2])
def test_corrupted_counts_real_tokens(rate: float, least: int) -> None:
    real = torch.arange(40)[None, :] < torch.arange(41)[:, None]
    for n, count in enumerate(corrupted(real, rate, least=least).tolist()):
        assert count == (0 if n < least else min(n, max(least, math.ceil(rate * n))))


def test_mean_over_ignores_unselected_tokens() -> None:
    values = torch.tensor([[1.0, torch.nan], [torch.inf, 3.0]])
    assert float(mean_over(values, torch.tensor([[True, False], [False, True]]))) == 2
    assert float(mean_over(values, torch.zeros(2, 2, dtype=torch.bool))) == 0


# --- views


def test_identical_views_are_the_clean_tokens() -> None:
    specs = SPECS["text"]
    encoder, batch = small_encoder(specs), random_batch(specs, B)
    first, second = two_views(encoder, encoder, batch.views, np.random.default_rng(0), "identical", 0)
    assert first.clean
    assert first.own.tokens is second.own.tokens


def test_noise_zeroes_a_fifth_of_the_tokens_and_differently_in_each_view() -> None:
    specs = (Table(50),)
    encoder, batch = small_encoder(specs), random_batch(specs, 64)
    first, second = two_views(encoder, encoder, batch.views, np.random.default_rng(0), "noise", 0)
    gone = [~view.own.tokens.any(dim=-1) for view in (first, second)]
    assert not first.clean
    assert not torch.equal(*gone)
    for zeroed in gone:
        assert float(zeroed.float().mean()) == pytest.approx(NOISE, abs=0.035)  # five standard deviations
    order = torch.tensor([5, 2])
    assert torch.equal(first.rows(order).tokens, first.own.tokens[order])


def test_a_mask_zeroes_the_values_of_numeric_columns_before_they_are_embedded() -> None:
    specs = (Table(4, (0, 3, 0, 0)),)
    encoder, (x,) = small_encoder(specs), random_batch(specs, 64).views[0]
    x[5, 0] = torch.nan
    views = two_views(encoder, encoder, ((x,),), np.random.default_rng(3), "mask", 0)
    rng = np.random.default_rng(3)
    for view in views:
        expected = x.clone()
        for row in expected:
            for column, drawn in enumerate(rng.random(4)):
                if column != 1 and drawn < 0.2 and not row[column].isnan():
                    row[column] = 0
        assert 0.1 < float((expected == 0)[:, [0, 2, 3]].float().mean()) < 0.3
        assert not view.clean
        assert torch.equal(view.own.tokens, encoder.embed((expected,)).tokens)
        order = torch.tensor([5, 2])
        assert torch.equal(view.rows(order).tokens, view.own.tokens[order])


def test_augmented_views_are_the_two_of_the_batch() -> None:
    specs = SPECS["image"]
    encoder, batch = small_encoder(specs), random_batch(specs, B, num_views=2)
    views = two_views(encoder, encoder, batch.views, np.random.default_rng(0), "augment", 0)
    for view, inputs in zip(views, batch.views, strict=True):
        assert torch.equal(view.own.tokens, encoder.embed(inputs).tokens)
        assert not view.clean


def test_unavailable_views_are_refused() -> None:
    specs = SPECS["image"]
    encoder, batch = small_encoder(specs), random_batch(specs, B)
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="carries one view"):
        two_views(encoder, encoder, batch.views, rng, "augment", 0)
    with pytest.raises(UserError, match="got 'nosie'"):
        two_views(encoder, encoder, batch.views, rng, "nosie", 0)


@pytest.mark.parametrize("mixing", ["mixup", "patch", "cutmix"])
@pytest.mark.parametrize("share", ["operator", "example", "batch"])
def test_lambda_is_drawn_per_example_or_per_batch(mixing: str, share: str) -> None:
    specs = (Grid(1, (16, 16), (1, 1)),)
    encoder, batch = small_encoder(specs), random_batch(specs, B)
    view = View(encoder, batch.views[0], encoder.embed(batch.views[0]))
    mixed, _ = mix(view, np.random.default_rng(3), mixing, 1.0, share)  # type: ignore[arg-type]  # plain strings here
    once = share == "batch" or (share == "operator" and mixing == "cutmix")
    assert (len(set(mixed.weight.tolist())) == 1) == once
