"""One standardiser for every modality, and one guard for constants."""

import numpy as np
import pytest
import torch

from dabsmix.data.standardise import Standardise, divisor, is_constant


def test_statistics_are_of_the_given_rows_and_apply_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([[3.0], [-200.0]], [[2.0], [0.1]], size=(3000, 2, 8)).astype(np.float32)
    rows = np.arange(0, 3000, 2)
    standardise = Standardise.of(x, rows)
    for channel in range(2):
        values = x[rows, channel].astype(np.float64)
        mean, std = (np.array(statistic)[channel] for statistic in (standardise.mean, standardise.std))
        assert mean == pytest.approx(values.mean(), rel=1e-6)
        assert std == pytest.approx(values.std(), rel=1e-5)
    (out,) = standardise((torch.from_numpy(x[rows]),))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean((0, 2)), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.std((0, 2)), torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.0, -61.1888])
def test_a_constant_channel_becomes_zero(constant: float) -> None:
    x = np.full((100, 1, 3), constant, np.float32)
    (out,) = Standardise.of(x, np.arange(100))((torch.from_numpy(x),))
    assert out.abs().max() < 1e-5


def test_a_table_row_is_standardised_by_column() -> None:
    x = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    (out,) = Standardise.of(x, np.arange(2))((torch.from_numpy(x),))
    assert out.tolist() == [[-1, -1], [1, 1]]


def test_sums_by_channel_give_the_same_and_a_constant_channel_is_only_centred() -> None:
    images = np.full((3, 2, 4, 4), 77)
    images[:, 1] += np.arange(16).reshape(4, 4)
    from_sums = Standardise.from_sums(48, images.sum(axis=(0, 2, 3)), (images**2).sum(axis=(0, 2, 3)))
    assert from_sums.mean == pytest.approx((77, 77 + 7.5))
    assert from_sums.std == pytest.approx((1, np.arange(16).std()))


def test_one_number_for_all() -> None:
    values = np.random.default_rng(0).normal(5, 3, size=(20, 1, 4))
    from_sums = Standardise.from_sums(80, values.sum(), (values**2).sum())
    (out,) = from_sums((torch.from_numpy(values).half(),))
    torch.testing.assert_close(out.double().numpy(), (values - values.mean()) / values.std(), atol=5e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.1, -61.1888, 3e8])
def test_what_rounding_leaves_of_a_constant_is_constant(value: float) -> None:
    rows = np.full(1000, value, np.float32)
    assert is_constant(rows.mean(), rows.std())
    varied = value + (abs(value) + 1) * np.linspace(-1, 1, 1000) * 1e-3
    assert not is_constant(varied.mean(), varied.std())


@pytest.mark.parametrize("value", [0.0, 0.1, -61.1888, 1e6])
def test_a_constant_of_ordinary_size_is_divided_by_one(value: float) -> None:
    assert divisor(np.array([value]), np.zeros(1)).tolist() == [1.0]


def test_a_small_spread_beside_a_large_mean_stays_within_a_few_units() -> None:
    milliseconds = 1.7e12 + np.linspace(0, 3.6e6, 1000)[:, None]  # an hour
    readings = milliseconds.astype(np.float32)
    (out,) = Standardise.of(readings, np.arange(1000))((torch.from_numpy(readings),))
    assert 0.1 < out.std() < out.abs().max() < 3
    steady = np.full((1000, 1), 1.7e12, np.float32)
    (out,) = Standardise.of(steady, np.arange(1000))((torch.from_numpy(steady),))
    assert out.abs().max() < 0.1
