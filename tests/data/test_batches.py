"""Batches are a function of (seed, step); processes share the global batch; reading ahead changes nothing."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dabsmix.data.batches import AHEAD, Batches, Raw, step_seed
from dabsmix.data.domain import Split
from dabsmix.errors import UserError

CPU = torch.device("cpu")


def split(n: int = 23) -> Split:
    rng = np.random.default_rng(0)
    store = rng.normal(size=(100, 4)).astype(np.float32)
    rows = rng.permutation(100)[:n]
    return Split((store, store[:, :1]), rows, label=rows % 3)


def equal(a: Raw, b: Raw) -> bool:
    assert a.label is not None
    assert b.label is not None
    pairs = zip((*a.inputs, a.label, a.ids), (*b.inputs, b.label, b.ids), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_batch_holds_the_rows_that_its_ids_name() -> None:
    data = split()
    raw = Batches(data, 5, seed=1).read(7)
    ids = raw.ids.numpy()
    assert raw.ids.dtype == torch.int64
    assert raw.label is not None
    assert data.label is not None
    assert np.array_equal(raw.inputs[0].numpy(), np.asarray(data.inputs[0])[data.rows[ids]])
    assert np.array_equal(raw.label.numpy(), data.label[ids])


def test_a_batch_does_not_depend_on_earlier_steps() -> None:
    forward, backward = Batches(split(), 5, seed=1), Batches(split(), 5, seed=1)
    steps = range(12)
    first = [forward.read(step) for step in steps]
    second = [backward.read(step) for step in reversed(steps)][::-1]
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    other = Batches(split(), 5, seed=2)
    assert not np.array_equal(other.index(0), forward.index(0))


def test_every_example_comes_once_per_epoch_and_epochs_differ() -> None:
    batches = Batches(split(20), 5, seed=0)
    epochs = [np.concatenate([batches.index(4 * epoch + k) for k in range(4)]) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert not np.array_equal(epochs[0], epochs[1])
    # the remainder of an epoch is dropped, and no example comes twice
    ragged = Batches(split(23), 5, seed=0)
    indices = np.concatenate([ragged.index(k) for k in range(4)])
    assert len(set(indices)) == 20
    assert ragged.steps_per_epoch == 4


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_parts_of_the_processes_make_up_the_global_batch_in_rank_order(world_size: int) -> None:
    batches = Batches(split(), 6, seed=3)
    parts = [Batches(split(), 6, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    for step in (0, 2, 3, 10):
        together = torch.cat([part.read(step).ids for part in parts])
        assert torch.equal(together, batches.read(step).ids)


def test_reading_ahead_equals_reading() -> None:
    batches = Batches(split(), 5, seed=0)
    for start, stop in ((0, 9), (3, 4), (2, 4), (5, 5)):
        ahead = list(batches.iterate(start, stop, CPU))
        assert len(ahead) == stop - start
        assert all(equal(raw, batches.read(step)) for step, raw in zip(range(start, stop), ahead, strict=True))


class Broken:
    """Rows of which one cannot be read; the reads are counted."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reads = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]:
        self.reads += 1
        if self.at in rows:
            raise OSError("the disk is gone")
        return np.zeros((len(rows), 2), dtype=np.float32)


class Meeting:
    """Rows whose reads begin only once as many threads are reading."""

    def __init__(self, threads: int) -> None:
        self.barrier = threading.Barrier(threads, timeout=20)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]:
        self.barrier.wait()
        return rows.astype(np.float32)


def test_each_batch_ahead_is_read_by_a_thread_of_its_own() -> None:
    batches = Batches(Split((Meeting(AHEAD),), np.arange(40)), 4, seed=0)
    for step, raw in enumerate(batches.iterate(0, 3 * AHEAD, CPU)):
        assert raw.ids.tolist() == raw.inputs[0].tolist() == batches.index(step).tolist()


def test_a_failure_in_a_reading_thread_surfaces_at_its_step() -> None:
    all_rows = Split((np.zeros((40, 2)),), np.arange(40))
    store = Broken(at=Batches(all_rows, 4, seed=0).index(2)[0])
    ahead = Batches(Split((store,), np.arange(40)), 4, seed=0).iterate(0, 1000, CPU)
    next(ahead)
    next(ahead)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert store.reads <= 2 + AHEAD + 1


def test_leaving_the_loop_early_ends_the_threads() -> None:
    store = Broken(at=1000)
    before = threading.active_count()
    iterator = Batches(Split((store,), np.arange(40)), 4, seed=0).iterate(0, 1000, CPU)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before
    assert store.reads <= 1 + AHEAD


def test_an_unlabelled_split_gives_batches_without_labels() -> None:
    assert Batches(Split((np.zeros((9, 2)),), np.arange(9)), 4, seed=0).read(0).label is None


def test_a_batch_larger_than_the_data_is_refused() -> None:
    Batches(split(23), 23, seed=0)
    with pytest.raises(UserError, match="--batch-size 24 is larger than the 23 examples"):
        Batches(split(23), 24, seed=0)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="does not divide by 2 processes"):
        Batches(split(23), 5, seed=0, world_size=2)


def test_step_seeds_are_63_bits_and_do_not_repeat() -> None:
    seeds = {
        step_seed(seed, step, purpose, rank)
        for seed in range(5)
        for step in range(50)
        for purpose in ("", "draws", "dropout")
        for rank in range(2)
    }
    assert len(seeds) == 5 * 50 * 3 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(11, 1) != step_seed(1, 11)
