"""The number of processes and of passes changes nothing: loss, gradients, queues and statistics equal those of one."""

import copy
import gc
import os
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dabsmix.data.standardise import Standardise
from dabsmix.distributed import all_sum, gather, gather_with_grad, local, own_rows, rank, world_size
from dabsmix.modalities.augmentation import SensorViews, SoundViews
from dabsmix.modalities.image import augmented, imix_view
from dabsmix.modalities.spectrogram import Form
from dabsmix.model.batch_norm import GlobalBatchNorm
from dabsmix.model.encoder import build_encoder
from dabsmix.model.shapes import AnyConfig, MLPConfig, ResNetConfig
from dabsmix.pretext.algorithm import Algorithm
from dabsmix.registry import algorithm_class, algorithms
from dabsmix.spec import Batch, Grid, Spec, Table, Tokens
from dabsmix.testing import random_batch, small_encoder

SIZE = 16  # the global batch
LARGE, MICRO = 64, 16  # the global batch that is encoded in parts, and the examples of a part
STEPS = 2
PADDED = (Grid(2, (8,), (2,)), Tokens(7, 11, pad=0))  # processes hold different numbers of real tokens
TABLE = (Table(6, (0, 4, 0, 0, 3, 0)),)


class Case(NamedTuple):
    algorithm: str
    hyper: Mapping[str, Any]
    specs: tuple[Spec, ...] = PADDED
    encoder: AnyConfig | None = None  # a small transformer


def cases() -> list[Case]:
    """Every algorithm with its defaults, and settings that involve other processes in other ways."""
    keys = {"momentum": 0.5}  # a key encoder that changes enough to be detected
    queue = {"queue": 19, **keys}  # not a multiple of 16, and full after two steps
    small = {"moco": queue, "imix_moco": queue, "byol": keys, "imix_byol": keys}
    selected = [Case(name, small.get(name, {})) for name in algorithms() if algorithm_class(name).trains]
    return [
        *selected,
        Case("emix", {"label_weight": "batch-mean"}),
        Case("dmix", {"detach_partner": False}),
        Case("moco", {"queue": 10, "in_batch_negatives": True, "head_norm": "both"}),
        Case("contpred", {"negatives": "batch", "score": "masked", "normalize": True}),
        Case("contdmix", {"score": "masked", "normalize": True}),
        Case("imix_npair", {"mixing": "patch", "views": "noise", "inputmix": 2}),
        Case("imix_moco", {"mixing": "cutmix", "inputmix": 1, "queue": 19}),
        Case("imix_byol", {"mixing": "patch", "views": "noise", "head_norm": "both"}),
        Case("imix_simclr", {"mixing": "cutmix", "share": "example"}, TABLE),
        Case("mae", {}, TABLE),
        Case("imix_moco", queue, TABLE, MLPConfig((16, 16))),
        Case("imix_npair", {"mixing": "cutmix"}, (Grid(3, (8, 8), (2, 2)),), ResNetConfig("basic", (1, 1, 1, 1))),
        *(Case(name, {"views": "augment", **small.get(name, {})}) for name in ("npair", "imix_moco", "imix_simclr")),
    ]


def test_one_process_is_the_whole_world() -> None:
    x = torch.randn(4, 2, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather_with_grad(x) is x
    assert all_sum(x) is x
    assert torch.equal(local(x), x)
    assert not gather(x).requires_grad
    assert own_rows(x).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_on_one_process_equals_torchs(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm(5).double(), nn.BatchNorm1d(5).double()
    for step in range(3):
        a = (torch.randn(6, 5, dtype=torch.float64) * 3 + 1).requires_grad_()
        b = a.detach().clone().requires_grad_()
        ours.train(training or step < 2)
        theirs.train(training or step < 2)
        out, expected = ours(a), theirs(b)
        torch.testing.assert_close(out, expected)
        out.square().mul(torch.arange(5)).sum().backward()
        expected.square().mul(torch.arange(5)).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one(processes: int) -> None:
    _spawn(processes, [(case, _run(case, _build(case), SIZE)) for case in cases()], SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_four_micro_batches_equal_the_batch(processes: int) -> None:
    """4 x 16 examples on one process, or 2 x 16 on each of two, give what 64 at once give on one process."""
    expected = [(case, _run(case, _build(case), LARGE)) for case in cases() if not _build(case).encoder.has_batch_norm]
    assert {case.algorithm for case, _ in expected} == {name for name in algorithms() if algorithm_class(name).trains}
    _spawn(processes, expected, LARGE, MICRO)


def _spawn(processes: int, expected: "list[tuple[Case, Ran]]", size: int, micro_batch: int | None = None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (processes, port, expected, size, micro_batch)
    mp.spawn(_worker, arguments, nprocs=processes)  # type: ignore[attr-defined, no-untyped-call]  # torch


# --- code of each process: spawn raises its errors again


def _worker(
    process: int, processes: int, port: int, expected: "list[tuple[Case, Ran]]", size: int, micro_batch: int | None
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    views = _augmented()  # of the whole batch, because this process is alone so far
    dist.init_process_group("gloo", rank=process, world_size=processes)
    try:
        _check_functions()
        torch.testing.assert_close(gather(_augmented()), views)
        problems = [
            problem
            for case, alone in expected
            for problem in _compare(case, _run(case, _build(case, micro_batch), size), alone)
        ]
        assert not problems, "\n".join(problems)
        dist.barrier()
    finally:
        gc.collect()  # DDP holds the group in circles; a group that outlives this line may abort the process at its end
        dist.destroy_process_group()


def _check_functions() -> None:
    n, size = 3 * world_size(), 3
    everything = torch.arange(n * 2.0).view(n, 2)
    mine = local(everything).clone().requires_grad_()
    assert torch.equal(mine.detach(), everything[rank() * size : (rank() + 1) * size])
    assert own_rows(mine).tolist() == list(range(rank() * size, (rank() + 1) * size))
    assert torch.equal(gather(mine), everything)
    assert torch.equal(gather(mine.detach() > 3), everything > 3)

    weight = 1 + rank() + everything  # each process does this with all rows
    (grad,) = torch.autograd.grad((gather_with_grad(mine) * weight).sum(), mine)
    total = torch.stack([local(1 + r + everything) for r in range(world_size())]).sum(dim=0)
    assert torch.equal(grad, total)

    (grad,) = torch.autograd.grad((all_sum(mine) * (1 + rank())).sum(), mine)
    assert torch.equal(grad, torch.full_like(mine, sum(range(1, 1 + world_size()))))


def _augmented() -> Tensor:
    """Views of images, sounds and sensors, flattened and concatenated: ``(b, numbers)``."""
    images = torch.rand(SIZE, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mine, plain, form = local(images), Standardise(0.0, 1.0), Form(8000, 7680, 512, 512, 16, 4)
    views = [augmented(mine, torch.Generator().manual_seed(2), flip=True)]
    views.append(imix_view(mine, torch.Generator().manual_seed(2), flip=True))
    views += SoundViews(plain, form).augment((mine[:, :1],), torch.Generator().manual_seed(2))
    views += SensorViews(plain, (0,)).augment((mine[:, :, 0],), torch.Generator().manual_seed(2))
    return torch.cat([view.flatten(1) for view in views], dim=1)


class Ran(NamedTuple):
    losses: list[float]
    metrics: list[dict[str, float]]
    gradient: dict[str, Tensor]
    state: dict[str, Tensor]


def _build(case: Case, micro_batch: int | None = None) -> Algorithm:
    torch.manual_seed(0)
    small = small_encoder(case.specs, dropout=0.0)
    encoder = small if case.encoder is None else build_encoder(case.specs, case.encoder)
    encoder.micro_batch = micro_batch
    return algorithm_class(case.algorithm)(encoder, **case.hyper)


def _run(case: Case, algorithm: Algorithm, size: int) -> Ran:
    """A few steps of plain gradient descent on ``size`` examples, in DDP if there are several processes."""
    model: nn.Module = algorithm
    if world_size() > 1:
        model = DistributedDataParallel(algorithm, broadcast_buffers=False)
    losses, metrics, gradient = [], [], {}
    for step in range(STEPS):
        num_views = 2 if algorithm.views == "augment" else 1
        batch = random_batch(case.specs, size, num_views=num_views, label=algorithm.needs_labels, seed=step)
        part = Batch(
            tuple(tuple(local(x) for x in view) for view in batch.views),
            None if batch.label is None else local(batch.label),
            local(batch.ids),
            batch.seed,
        )
        assert len(part.ids) == size // world_size()
        algorithm.zero_grad()
        loss = model(part)
        loss.value.backward()
        if step == 0:
            gradient = {k: p.grad.clone() for k, p in algorithm.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for p in algorithm.parameters():
                if p.grad is not None:
                    p.sub_(0.1 * p.grad)
        algorithm.after_step((step + 1) / STEPS)
        losses.append(float(all_sum(loss.value.detach())) / world_size())
        metrics.append({k: float(all_sum(v)) / world_size() for k, v in loss.metrics.items()})
    return Ran(losses, metrics, gradient, copy.deepcopy(algorithm.state_dict()))


def _compare(case: Case, ran: Ran, alone: Ran) -> list[str]:
    problems = []
    where = f"{case.algorithm} {dict(case.hyper)} on process {rank()} of {world_size()}"
    if abs(ran.losses[0] - alone.losses[0]) > 1e-5 * abs(alone.losses[0]):
        problems.append(f"{where}: loss {ran.losses[0]} for {alone.losses[0]}")
    if max(abs(a - b) / abs(b) for a, b in zip(ran.losses, alone.losses, strict=True)) > 1e-4:
        problems.append(f"{where}: losses {ran.losses} for {alone.losses}")
    for key, value in alone.metrics[0].items():
        if abs(ran.metrics[0][key] - value) > 1e-5 * max(1, abs(value)):
            problems.append(f"{where}: {key} {ran.metrics[0][key]} for {value}")
    total = torch.stack([g.norm() for g in alone.gradient.values()]).norm()
    for key, grad in alone.gradient.items():  # one by one, because a small one would be lost in the norm of all
        error = (ran.gradient[key] - grad).norm()
        if (
            not error <= 1e-5 * grad.norm() + 1e-6 * total
        ):  # before batch norm the gradient of a bias is rounding error only
            problems.append(f"{where}: the gradient of {key} differs by {float(error / grad.norm()):.1e} of its norm")
    for key, state in ran.state.items():  # weights, momentum copies, running statistics, queues
        expected = alone.state[key]
        if not torch.equal(gather(state[None]), state.expand(world_size(), *state.shape)):
            problems.append(f"{where}: {key} is not the same on every process")
        error = (state.double() - expected.double()).abs().max()
        if not error <= 1e-5 * expected.double().abs().max() + 1e-6:
            problems.append(f"{where}: {key} differs by {float(error):.1e}")
    return problems
