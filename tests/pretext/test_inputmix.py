"""InputMix against the paper's weights, and that both views of a batch are mixed before i-Mix."""

import numpy as np
import pytest
import torch
from torch import Tensor
from twins import B, assert_loss, batch_of, build, mixed_up, npair_loss, projections

from dabsmix.pretext.views import draw_inputmix, two_views
from dabsmix.testing import SPECS, random_batch, small_encoder


def drawn_weights(rng: np.random.Generator, n: int, num: int) -> list[list[float]]:
    """The weights of the paper, example by example."""
    out = []
    for _ in range(n):
        if num == 1:
            part = rng.random()  # uniform is Beta(1, 1)
            out.append([max(part, 1 - part), min(part, 1 - part)])
        else:
            one, *others = rng.dirichlet([1.0] * (1 + num)).tolist()
            out.append([one / 2 + 0.5, *(x / 2 for x in others)])
    return out


@pytest.mark.parametrize("num", [1, 2])
def test_inputmix_draws_the_papers_weights(num: int) -> None:
    drawn = draw_inputmix(np.random.default_rng(3), 50, num, torch.device("cpu"))
    expected = drawn_weights(np.random.default_rng(3), 50, num)  # the same draws, read one by one
    torch.testing.assert_close(drawn.weights, torch.tensor(expected))
    torch.testing.assert_close(drawn.weights.sum(dim=1), torch.ones(50))
    assert drawn.weights[:, 0].min() >= 0.5


@pytest.mark.parametrize(("num", "mean"), [(1, 3 / 4), (2, 2 / 3)])
def test_inputmix_keeps_its_own_example_at_half_or_more(num: int, mean: float) -> None:
    """E max(u, 1-u) = 3/4 for uniform u; for one of the three parts of Dirichlet(1, 1, 1) it is ½ · ⅓ + ½ = ⅔."""
    weights = draw_inputmix(np.random.default_rng(0), 20_000, num, torch.device("cpu")).weights
    assert weights[:, 0].min() >= 0.5
    assert float(weights[:, 0].mean()) == pytest.approx(mean, abs=0.006)  # five standard deviations


def test_auxiliaries_are_permutations_of_the_batch() -> None:
    drawn = draw_inputmix(np.random.default_rng(0), 50, 2, torch.device("cpu"))
    assert [sorted(column) for column in drawn.rows.T.tolist()] == [list(range(50))] * 2
    assert not torch.equal(drawn.rows[:, 0], drawn.rows[:, 1])


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("kind", ["identical", "noise", "augment"])
def test_inputmix_is_in_both_views_and_drawn_for_each(kind: str, num: int) -> None:
    specs = SPECS["image"]
    encoder, batch = small_encoder(specs), random_batch(specs, B, num_views=2)
    first, second = two_views(encoder, encoder, batch.views, np.random.default_rng(0), kind, num)
    assert first.inputmix is not None
    assert second.inputmix is not None
    assert not torch.equal(first.inputmix.rows, second.inputmix.rows)
    assert not torch.equal(first.inputmix.weights, second.inputmix.weights)
    for view in (first, second):
        assert not view.clean
        assert not torch.equal(view.own.tokens, view.embedded.tokens)


@pytest.mark.parametrize("num", [1, 2])
def test_inputmix_goes_into_both_views_before_the_mixing_and_leaves_labels_alone(num: int) -> None:
    algorithm, batch = build("imix_npair", "sensor", inputmix=num), batch_of("sensor")
    tokens, _ = algorithm.encoder.embed(batch.views[0])
    rng = np.random.default_rng(batch.seed)

    def view() -> Tensor:
        weights = [[float(np.float32(w)) for w in row] for row in drawn_weights(rng, B, num)]
        columns = [rng.permutation(B).tolist() for _ in range(num)]
        rows = []
        for i in range(B):
            parts = [tokens[i], *(tokens[column[i]] for column in columns)]
            rows.append(sum((w * x for w, x in zip(weights[i], parts, strict=True)), torch.zeros_like(tokens[i])))
        return torch.stack(rows)

    first, second = view(), view()
    order = rng.permutation(B).tolist()
    weight = [float(np.float32(max(x, 1 - x))) for x in rng.beta(1, 1, size=B)]
    mixed, lam = mixed_up(first, None, order, weight)
    anchors, keys = projections(algorithm, algorithm.head, [mixed, list(second)], None)
    assert_loss(algorithm, batch, npair_loss(anchors, keys, order, lam, 0.2))
