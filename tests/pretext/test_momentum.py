"""The momentum copy and the queue of keys, step by step against plain lists."""

from collections import deque

import pytest
import torch
from torch import nn

from dabsmix.pretext.momentum import Queue, follow, momentum_copy


def test_parameters_follow_and_buffers_do_not() -> None:
    norm = nn.BatchNorm1d(4)
    query = nn.Sequential(nn.Linear(3, 4), norm).double()
    key = momentum_copy(query)
    before = [p.clone() for p in key.parameters()]
    query(torch.randn(8, 3, dtype=torch.float64))  # changes only the running statistics of the query
    with torch.no_grad():
        for p in query.parameters():
            p.add_(torch.randn_like(p))
    follow(key, query, 0.9)
    for old, new, online in zip(before, key.parameters(), query.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
        assert not new.requires_grad
    means = {k: v for k, v in key.state_dict().items() if k.endswith("running_mean")}
    assert norm.running_mean is not None
    assert norm.running_mean.any()
    assert torch.equal(means["1.running_mean"], torch.zeros(4, dtype=torch.float64))


def test_copy_shares_nothing_with_its_original() -> None:
    query = nn.Linear(2, 2)
    key = momentum_copy(query)
    assert query.weight.requires_grad
    assert query.weight.data_ptr() != key.weight.data_ptr()


@pytest.mark.parametrize("length", [1, 5, 7, 8, 16, 21])
@pytest.mark.parametrize("size", [1, 4, 8, 20])
def test_queue_holds_the_last_keys_in_order_through_wraparound(length: int, size: int) -> None:
    torch.manual_seed(0)
    queue = Queue(length, 3)
    oldest_first = deque(queue.keys.clone(), maxlen=length)
    for _ in range(9):
        keys = torch.randn(size, 3)
        queue.push(keys)
        oldest_first.extend(keys)
        pointer = int(queue.pointer)  # the oldest key is at the next write position
        assert torch.equal(queue.keys.roll(-pointer, dims=0), torch.stack(list(oldest_first)))
    assert pointer == 9 * size % length


def test_queue_begins_with_unit_vectors_and_is_state() -> None:
    queue = Queue(6, 3)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(6))
    queue.push(torch.randn(4, 3))
    other = Queue(6, 3)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys)
    assert int(other.pointer) == 4
