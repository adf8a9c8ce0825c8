"""The whole network trained on the labels: the ``finetune`` protocol, and supervised training as a yardstick."""

# B examples, L tokens, D width, C outputs

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

import dabsmix
from dabsmix.data.batches import Batches, step_seed
from dabsmix.data.domain import Data, Split, Task
from dabsmix.files import cached
from dabsmix.model.encoder import Encoder, build_encoder
from dabsmix.scoring.evaluate import kept, result, share
from dabsmix.scoring.features import each_row
from dabsmix.scoring.metrics import Metric, Undefined, metric
from dabsmix.scoring.results import Result, prediction_key
from dabsmix.scoring.selection import few_labels
from dabsmix.spec import describe
from dabsmix.training import learning_rate

__all__ = ["FINETUNE", "SUPERVISED", "Finetuned", "Network", "Recipe", "finetune", "layer_groups", "supervised"]

Watch = Callable[[str, Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW with warm-up (5 % of the steps) and cosine, as ViTs are (MAE, He et al. 2022).

    Attributes:
        rates: peak learning rates, one of which validation chooses.
        layer_decay: the rate's factor from each layer to the one below it (BEiT, Bao et al. 2022: 0.65 to 0.75).
        weight_decay: decoupled; none for biases, norms, CLS and positions.
        batch_size: over all processes.
        epochs: passes over the training part.
        steps: least and greatest number of steps, whatever `epochs` says.
        draws: how many subsets of a share of the labels below 1 are drawn.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    layer_decay: float = 0.7
    weight_decay: float = 0.05
    batch_size: int = 128
    epochs: int = 30
    steps: tuple[int, int] = (300, 30_000)
    draws: int = 3


FINETUNE = Recipe()
SUPERVISED = replace(FINETUNE, layer_decay=1.0, epochs=100)


class Finetuned(NamedTuple):
    """One result per share of the labels, test predictions by ``probe@share``, the score on train (all labels), and the
    scores of the first result's first draw on test."""

    results: list[Result]
    predictions: dict[str, NDArray[Any]]
    train_value: float | None
    outputs: NDArray[Any]


def finetune(
    encoder: Encoder,
    data: Data,
    labels: tuple[str, ...],
    recipe: Recipe,
    *,
    accelerator: Accelerator,
    seed: int = 0,
    watch: Watch = lambda title, items: items,
    others: Sequence[str] = (),
) -> Finetuned:
    """Train a copy of the encoder with a linear head at every rate, choose on validation, read test once.

    Args:
        encoder: where each training starts; not changed.
        data: with a task and all three labelled splits.
        labels: shares as ``evaluate.share`` reads them; validation shrinks with train.
        recipe: how to train.
        accelerator: where, and among how many processes.
        seed: of heads, batches, dropout and subsets.
        watch: given a title and the steps, for a progress bar.
        others: metrics to report beside.

    Raises:
        Undefined: the metric has no value on the validation labels.
        ValueError: every rate diverged.
    """
    labelled = data.require_labelled()
    task, wanted = labelled.task, metric(labelled.task.metric)
    results, predictions, train_value, first = [], {}, None, np.empty(0, np.float32)
    for label in labels:
        draws = few_labels(
            labelled.train, labelled.validation, task, draws=recipe.draws, seed=seed, **share(label, task)
        )
        values, trained = [], []
        for rate in recipe.rates:
            networks, scores = [], []
            for part, validation in draws:
                watched = partial(watch, f"rate {rate:g}, labels {label}")
                network = _train(encoder, part, data, recipe, rate, accelerator, seed, watched)
                scores.append(_value(wanted, network, validation, data, accelerator))
                networks.append(network.cpu())
            values.append(_mean(scores, wanted))
            trained.append(networks)
        best = int(np.argmax(values) if wanted.higher else np.argmin(values))
        if not math.isfinite(values[best]):
            raise ValueError(f"finetuning diverged at all of the rates {recipe.rates}")

        outputs = [_predict(network, labelled.test, data, accelerator) for network in trained[best]]
        chosen = {"rate": recipe.rates[best], "validation": values[best], "candidates": len(values)}
        results.append(result("finetune", label, outputs, labelled.test, task, chosen, others))
        first = first if len(results) > 1 else outputs[0]
        predictions[prediction_key("finetune", label)] = kept(outputs, task)
        if label == "1":
            train_value = _value(wanted, trained[best][0], labelled.train, data, accelerator)
    return Finetuned(results, predictions, train_value, first)


def supervised(
    encoder: Encoder, data: Data, *, accelerator: Accelerator, watch: Watch = lambda title, items: items
) -> tuple[Result, ...]:
    """The same encoder trained with all labels from random weights: a yardstick, kept for the data set and encoder."""
    task = data.require_labelled().task
    asked = [data.fingerprint, describe(data.specs), str(task), asdict(encoder.config), asdict(SUPERVISED)]

    def train() -> list[dict[str, Any]]:
        torch.manual_seed(step_seed(0, 0, "weights"))
        fresh = build_encoder(encoder.specs, encoder.config)
        found = finetune(fresh, data, ("1",), SUPERVISED, accelerator=accelerator, watch=watch).results
        return [asdict(each) for each in found]

    key = json.dumps([*asked, dabsmix.__version__])
    return tuple(Result.from_plain(each) for each in cached("supervised", key, train, keep=accelerator.is_main_process))


class Network(nn.Module):
    """An encoder, a LayerNorm and a linear head, on the mean feature or on every token.

    Args:
        encoder: trained along.
        task: what is predicted.
        center, scale: of a regression target; the head predicts the standardised one.
    """

    def __init__(self, encoder: Encoder, task: Task, center: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.task, self.center, self.scale = encoder, task, center, scale
        self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, task.num_outputs)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Logits ``(B, C)``, or ``(B, L, C)`` for tokens."""
        embedded = self.encoder.embed(inputs)
        hidden = self.encoder.encode(embedded)
        x = hidden[:, 1:] if self.task.kind == "tokens" else self.encoder.pool(hidden, embedded.mask).mean
        return cast(Tensor, self.head(self.norm(x)))

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        """The task's, of a regression's standardised target."""
        return self.task.loss(outputs, label, self.center, self.scale)


def layer_groups(network: Network, rate: float, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """One group of AdamW per parameter: its layer's rate, and whether it decays.

    Embedders, CLS and positions are layer 0, block i is layer i + 1, what comes after the blocks is the last layer.
    """
    last = len(network.encoder.blocks) + 1
    groups = []
    for name, parameter in network.named_parameters():
        match name.split("."):
            case ["encoder", "blocks", number, *_]:
                layer = int(number) + 1
            case ["encoder", "embedders" | "cls" | "positions", *_]:
                layer = 0
            case _:
                layer = last
        decays = parameter.ndim > 1 and name not in ("encoder.cls", "encoder.positions")
        peak = rate * layer_decay ** (last - layer)
        groups.append({"params": [parameter], "peak": peak, "weight_decay": weight_decay if decays else 0.0})
    return groups


def _train(
    encoder: Encoder,
    part: Split,
    data: Data,
    recipe: Recipe,
    rate: float,
    accelerator: Accelerator,
    seed: int,
    watch: Callable[[Iterable[int]], Iterable[int]],
) -> Network:
    task = data.require_labelled().task
    assert part.label is not None
    world, device = accelerator.num_processes, accelerator.device
    size = max(1, min(recipe.batch_size, len(part)) // world) * world
    batches = Batches(part, size, seed=seed, rank=accelerator.process_index, world_size=world)
    steps = min(max(recipe.epochs * batches.steps_per_epoch, recipe.steps[0]), recipe.steps[1])

    torch.manual_seed(step_seed(seed, 0, "head"))
    network = Network(copy.deepcopy(encoder), task, *task.target_scale(part.label)).train()
    groups = layer_groups(network, rate, recipe.layer_decay, recipe.weight_decay)
    model, optimizer = accelerator.prepare(network, torch.optim.AdamW(groups, lr=rate, fused=True))
    for step, raw in zip(watch(range(steps)), batches.iterate(0, steps, device), strict=True):
        torch.manual_seed(step_seed(seed, step, "dropout", accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, group["peak"], "cosine")
        assert raw.label is not None
        accelerator.backward(network.loss(model(data.normalise(raw.inputs)), raw.label))
        optimizer.step()
        optimizer.zero_grad()
    accelerator.free_memory()
    return network


def _predict(network: Network, split: Split, data: Data, accelerator: Accelerator) -> NDArray[np.float32]:
    """Scores of a whole split in the form of ``metrics.py``."""
    outputs = (network.task.num_outputs,)
    shape = (network.encoder.num_tokens, *outputs) if network.task.kind == "tokens" else outputs
    network.to(accelerator.device)
    found = each_row(network, network, shape, split, data.normalise, accelerator)
    scores: NDArray[np.float32] = network.task.scores(found, network.center, network.scale).numpy()
    return scores


def _value(wanted: Metric, network: Network, split: Split, data: Data, accelerator: Accelerator) -> float:
    """The score on a split: NaN where its labels give none, the worst there is where the network diverged."""
    assert split.label is not None
    scores = _predict(network, split, data, accelerator)
    if not np.isfinite(scores).all():
        return -math.inf if wanted.higher else math.inf
    try:
        return wanted(scores, split.label)
    except Undefined:
        return math.nan


def _mean(scores: list[float], wanted: Metric) -> float:
    """Over the draws whose validation labels give the metric a value."""
    defined = [score for score in scores if not math.isnan(score)]
    if not defined:
        raise Undefined(f"{wanted.name} has no value on the validation labels: more of them are needed to choose with")
    return float(np.mean(defined))
