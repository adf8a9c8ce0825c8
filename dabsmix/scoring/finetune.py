"""The whole network trained on the labels: the ``finetune`` protocol, and supervised training as a yardstick.

With mixing (``head_mix.py``) the same loop trains the network, or a linear head on frozen features.
"""

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
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.model.contract import Embedded
from dabsmix.model.encoder import Encoder, build_encoder
from dabsmix.model.shapes import MLPConfig
from dabsmix.scoring.baselines import Yardsticks, cached_yardsticks, rows_digests
from dabsmix.scoring.evaluate import compact, result, share
from dabsmix.scoring.features import each_row
from dabsmix.scoring.head_mix import MixedLoss, alpha_at, draw, el2n
from dabsmix.scoring.heads import Features, Scale, scaled
from dabsmix.scoring.metrics import Metric, Undefined, metric
from dabsmix.scoring.results import HeadMix, Result, mixed_probe, prediction_key, yardstick_key
from dabsmix.scoring.selection import few_labels
from dabsmix.spec import Table, describe
from dabsmix.training import learning_rate

__all__ = ["FINETUNE", "SUPERVISED", "FinetuneRecipe", "Finetuned", "Network", "finetune", "layer_groups", "supervised"]

WatchSteps = Callable[[str, Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class FinetuneRecipe:
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


FINETUNE = FinetuneRecipe()
SUPERVISED = replace(FINETUNE, layer_decay=1.0, epochs=100)
LINEAR = replace(SUPERVISED, rates=(1e-3, 1e-2, 1e-1))
"""Of a linear head that is trained with mixing on frozen features."""
UNMIXED = HeadMix()
EL2N_EPOCH = 10
"""EL2N scores are of this epoch (Paul et al. 2021 use 10 to 20), or of the last one if there are fewer."""


class Finetuned(NamedTuple):
    """One result per share of the labels, test predictions by ``probe@share``, and the score on train (all labels).

    ``outputs`` are the scores of the first result's first draw on test. ``el2n`` is the EL2N score of each training
    example, float32 ``(n,)``; None without all labels or without classes. ``network`` is the chosen one, of the last
    share's first draw.
    """

    results: list[Result]
    predictions: dict[str, NDArray[Any]]
    train_value: float | None
    outputs: NDArray[Any]
    el2n: NDArray[np.float32] | None = None
    network: Network | None = None


def finetune(
    encoder: Encoder,
    data: Data,
    labels: tuple[str, ...],
    recipe: FinetuneRecipe,
    *,
    accelerator: Accelerator,
    seed: int = 0,
    watch: WatchSteps = lambda title, items: items,
    others: Sequence[str] = (),
    mix: HeadMix = UNMIXED,
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
        others: further metrics to report.
        mix: what is mixed; a guided student's teacher is trained first, by mixup at the same rate.

    Raises:
        Undefined: the metric has no value on the validation labels.
        ValueError: every rate diverged.
    """
    labelled = data.require_labelled()
    task, main = labelled.task, metric(labelled.task.metric)
    probe = mixed_probe("linear" if isinstance(encoder, Frozen) else "finetune", str(mix)) if str(mix) else "finetune"
    results, predictions, train_value, first = [], {}, None, np.empty(0, np.float32)
    scores_of_train = None
    for label in labels:
        draws = few_labels(
            labelled.train, labelled.validation, task, draws=recipe.draws, seed=seed, **share(label, task)
        )
        values, trained = [], []
        for rate in recipe.rates:
            networks, scores = [], []
            for part, validation in draws:
                watched = partial(watch, f"rate {rate:g}, labels {label}")
                fitted = _train(encoder, part, data, recipe, rate, accelerator, seed, watched, mix)
                scores.append(_value(main, fitted.network, validation, data, accelerator))
                networks.append(fitted._replace(network=fitted.network.cpu()))
            values.append(_mean(scores, main))
            trained.append(networks)
        best = int(np.argmax(values) if main.higher else np.argmin(values))
        if not math.isfinite(values[best]):
            raise ValueError(f"finetuning diverged at all of the rates {recipe.rates}")

        outputs = [_predict(of_draw.network, labelled.test, data, accelerator) for of_draw in trained[best]]
        chosen: dict[str, Any] = {"rate": recipe.rates[best], "validation": values[best], "candidates": len(values)}
        if mix.method == "guided":
            chosen["kept"] = trained[best][0].shares_kept
        results.append(result(probe, label, outputs, labelled.test, task, chosen, others))
        first = first if len(results) > 1 else outputs[0]
        predictions[prediction_key(probe, label)] = compact(outputs, task)
        if label == "1":
            train_value = _value(main, trained[best][0].network, labelled.train, data, accelerator)
            scores_of_train = trained[best][0].el2n
    return Finetuned(results, predictions, train_value, first, scores_of_train, trained[best][0].network)


def supervised(
    encoder: Encoder,
    data: Data,
    *,
    accelerator: Accelerator,
    watch: WatchSteps = lambda title, items: items,
    mix: HeadMix = UNMIXED,
) -> Yardsticks:
    """The same encoder trained with all labels from random weights: a yardstick, cached by data set and encoder."""
    labelled = data.require_labelled()
    settings = [data.fingerprint, describe(data.specs), str(labelled.task), asdict(encoder.config), asdict(SUPERVISED)]
    settings += [str(mix)] if str(mix) else []
    key = json.dumps([*settings, rows_digests(labelled), dabsmix.__version__])

    def train() -> Yardsticks:
        torch.manual_seed(step_seed(0, 0, "weights"))
        fresh = build_encoder(encoder.specs, encoder.config)
        finetuned = finetune(fresh, data, ("1",), SUPERVISED, accelerator=accelerator, watch=watch, mix=mix)
        predictions = {yardstick_key("supervised", key): scores for key, scores in finetuned.predictions.items()}
        return Yardsticks({"supervised": tuple(finetuned.results)}, predictions)

    return cached_yardsticks("supervised", key, train, keep=accelerator.is_main_process)


class Network(nn.Module):
    """An encoder, a LayerNorm and a linear head, on the mean feature or on every token; the head alone if `Frozen`.

    Args:
        encoder: trained along.
        task: what is predicted.
        center, scale: of a regression target; the head predicts the standardised one.
    """

    def __init__(self, encoder: Encoder, task: Task, center: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.task, self.center, self.scale = encoder, task, center, scale
        self.norm = nn.Identity() if isinstance(encoder, Frozen) else nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, task.num_outputs)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Logits ``(B, C)``, or ``(B, L, C)`` for tokens."""
        return self.read(self.encoder.embed(inputs))

    def read(self, embedded: Embedded) -> Tensor:
        """The same of tokens before positions, which may be mixed."""
        hidden = self.encoder.encode(embedded)
        x = hidden[:, 1:] if self.task.kind == "tokens" else self.encoder.pool(hidden, embedded.mask).mean
        return cast(Tensor, self.head(self.norm(x)))

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        """The task's loss; of a regression, that of the standardised target."""
        return self.task.loss(outputs, label, self.center, self.scale)


class Frozen(Encoder):
    """An encoder that has run already: its features ``(n, D)`` are given as a table and are mixed directly.

    Args:
        width: D.
    """

    has_tokens = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.specs, self.grids, self.width = (Table(width),), ((1,),), width
        self.config = MLPConfig((width,))
        self.embedders, self.blocks = nn.ModuleList(), nn.ModuleList()

    def embed(self, inputs: tuple[Tensor, ...]) -> Embedded:
        """Features ``(B, 1, D)``."""
        return Embedded(inputs[0][:, None], None)

    def encode(self, embedded: Embedded) -> Tensor:
        """The same."""
        return embedded.tokens


def features_as_data(data: Data, train: Features, validation: Features, test: Features) -> tuple[Frozen, Data]:
    """Mean features of the splits, standardised by train, as a data set with the labels of ``data``; its encoder."""
    labelled = data.require_labelled()
    scale = Scale.of(train.pooled["mean"])
    parts: dict[str, Split] = {}
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        stored = scaled(part.pooled["mean"], scale).cpu().numpy()
        split = getattr(labelled, name)
        parts[name] = Split((stored,), np.arange(len(stored)), split.label, split.group)
    encoder = Frozen(train.pooled["mean"].shape[1])
    features = Labelled(labelled.task, **parts)
    return encoder, Data(encoder.specs, parts["train"], features, data.fingerprint)


class Trained(NamedTuple):
    """A network, EL2N scores of the examples it was trained on, and the share of them kept in each epoch."""

    network: Network
    el2n: NDArray[np.float32] | None
    shares_kept: list[float]


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
    recipe: FinetuneRecipe,
    rate: float,
    accelerator: Accelerator,
    seed: int,
    watch: Callable[[Iterable[int]], Iterable[int]],
    mix: HeadMix,
) -> Trained:
    labelled = data.require_labelled()
    task = labelled.task
    assert part.label is not None
    teacher = None
    if mix.method == "guided":
        by_mixup = replace(mix, method="mixup")
        teacher = _train(encoder, part, data, recipe, rate, accelerator, seed, watch, by_mixup).network.eval()
    world, device = accelerator.num_processes, accelerator.device
    size = max(1, min(recipe.batch_size, len(part)) // world) * world
    batches = Batches(part, size, seed=seed, rank=accelerator.process_index, world_size=world)
    steps = min(max(recipe.epochs * batches.steps_per_epoch, recipe.steps[0]), recipe.steps[1])
    all_labels = task.kind == "classes" and part is labelled.train
    scored_at = min(EL2N_EPOCH * batches.steps_per_epoch, steps) - 1 if all_labels else steps

    torch.manual_seed(step_seed(seed, 0, "head"))
    network = Network(copy.deepcopy(encoder), task, *task.target_scale(part.label)).train()
    groups = layer_groups(network, rate, recipe.layer_decay, recipe.weight_decay)
    model, optimizer = accelerator.prepare(MixedLoss(network, mix), torch.optim.AdamW(groups, lr=rate, fused=True))
    scores, shares = None, []
    for step, raw in zip(watch(range(steps)), batches.iterate(0, steps, device), strict=True):
        torch.manual_seed(step_seed(seed, step, "dropout", accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, group["peak"], "cosine")
        assert raw.label is not None
        epoch = step // batches.steps_per_epoch
        drawn = None
        if mix.method != "none" and (mix.epochs is None or epoch < mix.epochs):
            rng = np.random.default_rng(step_seed(seed, step, "mix", accelerator.process_index))
            drawn = draw(rng, mix, alpha_at(mix, step / steps), len(raw.label), encoder, device)
        loss, share_kept = model(data.normalise(raw.inputs), raw.label, drawn, teacher)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if teacher is not None:
            shares.append((epoch, accelerator.reduce(share_kept, "mean").item()))
        if step == scored_at:
            outputs = torch.from_numpy(_predict(network, part, data, accelerator))
            scores = el2n(outputs, torch.from_numpy(part.label)).numpy()
    accelerator.free_memory()
    by_epoch = [[share for epoch, share in shares if epoch == which] for which in dict(shares)]
    return Trained(network, scores, [round(sum(epoch_shares) / len(epoch_shares), 4) for epoch_shares in by_epoch])


def _predict(network: Network, split: Split, data: Data, accelerator: Accelerator) -> NDArray[np.float32]:
    """Scores of a whole split in the form of ``metrics.py``."""
    outputs = (network.task.num_outputs,)
    shape = (network.encoder.num_tokens, *outputs) if network.task.kind == "tokens" else outputs
    network.to(accelerator.device)
    raw = each_row(network, network, shape, split, data.normalise, accelerator)
    scores: NDArray[np.float32] = network.task.scores(raw, network.center, network.scale).numpy()
    return scores


def _value(main: Metric, network: Network, split: Split, data: Data, accelerator: Accelerator) -> float:
    """The score on a split: NaN if its labels define none, the worst possible one if the network diverged."""
    assert split.label is not None
    scores = _predict(network, split, data, accelerator)
    if not np.isfinite(scores).all():
        return -math.inf if main.higher else math.inf
    try:
        return main(scores, split.label)
    except Undefined:
        return math.nan


def _mean(scores: list[float], main: Metric) -> float:
    """The mean over the draws whose validation labels define the metric."""
    defined = [score for score in scores if not math.isnan(score)]
    if not defined:
        raise Undefined(f"{main.name} has no value on the validation labels: use more, or another metric")
    return float(np.mean(defined))
