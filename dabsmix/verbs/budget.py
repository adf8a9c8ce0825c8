"""The cost of a pretraining step in counted FLOPs and measured seconds, to give algorithms equal budgets."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dabsmix.config import PretrainConfig, resolve
from dabsmix.data.batches import Batches, make_views, step_seed
from dabsmix.model.encoder import make_encoder
from dabsmix.registry import algorithm_class
from dabsmix.source import batch_size, load
from dabsmix.spec import Batch

__all__ = ["StepCost", "step_cost"]

WARM, TIMED = 1, 5  # steps


@dataclass(frozen=True)
class StepCost:
    """One step of an algorithm on a batch of its data: forward, backward and the momentum update, no online probe.

    Attributes:
        flops: those of matrix products and attention, two per multiply-add; elementwise operations are not counted.
        seconds: the median of five steps on this machine's GPU, or on its CPU if there is none.
    """

    flops: int
    seconds: float


def step_cost(config: PretrainConfig) -> StepCost:
    """Measure the cost of a step by running it: all forward and backward passes of the algorithm are included.

    For counting, attention is computed as its two products, which the counter sees; the fused kernels do the same work.
    """
    data = load(config.source)
    usual = batch_size(config.source)
    num = len(data.pretrain)
    config, recipe = resolve(config, usual if config.source.domain else min(usual, num), num)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(step_seed(config.seed, 0, "weights"))
    encoder = make_encoder(config.encoder, data.specs, attend_padding=recipe.attend_padding, columns=recipe.columns)
    algorithm = algorithm_class(config.algo)(encoder, **config.hyper).to(device).train()
    batches = Batches(data.pretrain, recipe.batch_size, seed=config.seed, rank=0, world_size=1)
    seconds = []
    flops = 0
    for step, raw in enumerate(batches.iterate(0, WARM + TIMED, device)):
        draws = step_seed(config.seed, step, "draws")
        batch = Batch(make_views(data, raw.inputs, algorithm.num_augmented, draws), raw.label, raw.ids, draws)
        if step == 0:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                algorithm(batch).value.backward()
            flops = counter.get_total_flops()
            continue
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = algorithm(batch).value
        loss.backward()
        algorithm.after_step(step / (WARM + TIMED))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return StepCost(flops, sorted(seconds)[len(seconds) // 2])
