"""Features of a split: the encoder in eval mode, every example once, whatever the batch."""

import numpy as np
import pytest
import torch

from dabsmix.data.domain import Split
from dabsmix.errors import UserError
from dabsmix.model.encoder import make_encoder
from dabsmix.scoring.features import features, token_features
from dabsmix.spec import Table
from dabsmix.training import accelerate


def test_features_equal_one_pass_in_eval_mode_whatever_the_batch() -> None:
    torch.manual_seed(0)
    encoder = make_encoder("tiny", (Table(3),)).train()
    store = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rows = np.random.default_rng(1).permutation(50)[:37]
    split = Split((store,), rows)

    def doubled(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(2 * x for x in inputs)

    by_batch_size = [
        features(encoder, split, doubled, accelerator=accelerate(), batch_size=batch_size) for batch_size in (5, 37, 64)
    ]
    assert encoder.training  # the encoder stays in its mode
    with torch.no_grad():
        expected = encoder.eval()((2 * torch.from_numpy(store[rows]),))
    for pooled in by_batch_size:
        assert pooled.mean.dtype == torch.float32
        torch.testing.assert_close(pooled.mean, expected.mean)
        torch.testing.assert_close(pooled.cls, expected.cls)


def test_watch_is_called_for_each_batch() -> None:
    encoder = make_encoder("tiny", (Table(2),))
    split = Split((np.zeros((10, 2), dtype=np.float32),), np.arange(10))
    starts: list[int] = []

    def watch(batches):  # type: ignore[no-untyped-def]  # Iterable[int] to Iterable[int]
        for start in batches:
            starts.append(start)
            yield start

    features(encoder, split, lambda x: x, accelerator=accelerate(), batch_size=4, watch=watch)
    assert starts == [0, 4, 8]


def test_token_features_are_those_of_one_pass() -> None:
    torch.manual_seed(0)
    encoder = make_encoder("tiny", (Table(3),))
    store = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    split = Split((store,), np.arange(9)[::-1].copy())
    tokens = token_features(encoder, split, lambda x: x, accelerator=accelerate(), batch_size=4)
    with torch.no_grad():
        expected = encoder.eval().encode(encoder.embed((torch.from_numpy(store[::-1].copy()),)))
    assert tokens.shape == (9, 3, 64)
    torch.testing.assert_close(tokens, expected[:, 1:])


def test_a_process_has_one_precision() -> None:
    accelerate()
    accelerate()
    with pytest.raises(UserError, match="--precision bf16: this process has used another one already"):
        accelerate("bf16")
