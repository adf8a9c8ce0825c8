"""The cost of a pretraining step in counted FLOPs and measured seconds, to give algorithms equal budgets."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dabsmix.config import PretrainConfig, Recipe, resolve
from dabsmix.data.batches import Batches, make_views, step_seed
from dabsmix.data.domain import Data
from dabsmix.model.encoder import make_encoder
from dabsmix.pretext.algorithm import Algorithm
from dabsmix.registry import algorithm_class
from dabsmix.source import batch_size, load
from dabsmix.spec import Batch

__all__ = ["StepCost", "step_cost", "step_flops", "training_flops"]

WARM, TIMED = 1, 5  # steps
COUNTED = 16  # examples of each process: FLOPs are nearly proportional to them, memory too


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
    encoder = make_encoder(
        config.encoder,
        data.specs,
        attend_padding=recipe.attend_padding,
        columns=recipe.columns,
        attention=config.attention,
        dropout_masks=config.dropout_masks,
    )
    algorithm = algorithm_class(config.algo)(encoder, **config.hyper).to(device).train()
    batches = Batches(data.pretrain, recipe.batch_size, seed=config.seed, rank=0, world_size=1)
    seconds = []
    flops = 0
    for step, raw in enumerate(batches.iterate(0, WARM + TIMED, device)):
        draws = step_seed(config.seed, step, "draws")
        batch = Batch(make_views(data, raw.inputs, algorithm.num_augmented, draws), raw.label, raw.ids, draws)
        if step == 0:
            flops = step_flops(algorithm, batch)
            continue
        began = time.perf_counter()
        dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=config.precision != "fp32"):
            loss = algorithm(batch).value
        loss.backward()
        algorithm.after_step(step / (WARM + TIMED))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return StepCost(flops, sorted(seconds)[len(seconds) // 2])


def training_flops(config: PretrainConfig, recipe: Recipe, data: Data, batches: Batches, device: torch.device) -> float:
    """FLOPs of all steps of a training, counted as in `StepCost` on a few examples; of all processes together.

    The step has a separate encoder and algorithm, and uses none of the training's random generators. Every
    process has to call this.

    Args:
        config, recipe: of the training.
        data: what is trained on.
        batches: of the training.
        device: where to take the step.
    """
    raw = next(iter(batches.iterate(0, 1, device)))
    rows = slice(max(COUNTED, algorithm_class(config.algo).min_batch))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        encoder = make_encoder(config.encoder, data.specs, attend_padding=recipe.attend_padding, columns=recipe.columns)
        algorithm = algorithm_class(config.algo)(encoder, **config.hyper).to(device).train()
        views = make_views(data, raw.inputs, algorithm.num_augmented, 0)
        label = raw.label if algorithm.needs_labels else None
        few = Batch(
            tuple(tuple(x[rows] for x in view) for view in views),
            None if label is None else label[rows],
            raw.ids[rows],
            0,
        )
        flops = step_flops(algorithm, few)
    return float(flops) / len(few.ids) * recipe.batch_size * recipe.steps


def step_flops(algorithm: Algorithm, batch: Batch) -> int:
    """FLOPs of a forward and a backward pass of an algorithm on a batch."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        algorithm(batch).value.backward()
    return int(counter.get_total_flops())
