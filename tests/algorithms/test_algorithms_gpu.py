"""An algorithm gives the same loss and gradients on a GPU as on the CPU, and stays finite in half precision."""

import copy

import pytest
import torch
from twins import KINDS, TRAINED, batch_of, build

from dabsmix.registry import algorithm_class
from dabsmix.spec import Batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def moved(batch: Batch) -> Batch:
    views = tuple(tuple(x.cuda() for x in view) for view in batch.views)
    return Batch(views, None if batch.label is None else batch.label.cuda(), batch.ids.cuda(), batch.seed)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", [*KINDS, "text"])
def test_a_gpu_gives_the_loss_and_gradients_of_the_cpu(name: str, kind: str) -> None:
    one, batch = build(name, kind), batch_of(kind, label=algorithm_class(name).needs_labels)
    two = copy.deepcopy(one).cuda()
    losses = [one(batch).value, two(moved(batch)).value]
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-6, atol=1e-8)
    for loss in losses:
        loss.backward()
    gradients = [
        {key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None} for model in (one, two)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_gpu_is_finite(name: str, dtype: torch.dtype) -> None:
    algorithm = build(name, "image+text").float().cuda()
    batch = moved(batch_of("image+text", label=algorithm_class(name).needs_labels))
    views = tuple(tuple(x.float() if x.is_floating_point() else x for x in view) for view in batch.views)
    with torch.autocast("cuda", dtype):
        loss = algorithm(batch._replace(views=views)).value
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in algorithm.parameters())
