"""Tests of the contracts of an algorithm and of a domain, for ours and for yours.

``check_algorithm(MyAlgorithm)`` and ``check_domain(my_domain, folder)`` raise an AssertionError that says what is
broken. They need no test framework, no network and no GPU, and take seconds.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.data.domain import Data, Domain, Split, Task
from dabsmix.model.encoder import EncoderConfig, Transformer, build_encoder
from dabsmix.model.shapes import ResNetConfig
from dabsmix.pretext.algorithm import Algorithm
from dabsmix.registry import algorithm_class, algorithm_flags
from dabsmix.spec import Batch, Grid, PaddedGrid, Spec, Table, Tokens

__all__ = ["SPECS", "check_algorithm", "check_domain", "random_batch", "random_inputs", "small_encoder"]

SPECS: Mapping[str, tuple[Spec, ...]] = {
    "sensor": (Grid(3, (12,), (2,)),),
    "sensor, padded": (PaddedGrid(3, (12,), (2,)),),
    "image": (Grid(3, (8, 8), (2, 2)),),
    "volume": (Grid(1, (4, 4, 4), (2, 2, 2)),),
    "table": (Table(6, (0, 4, 0, 0, 3, 0)),),
    "text": (Tokens(10, 23, pad=0),),
    "image+text": (Grid(1, (4, 4), (2, 2)), Tokens(6, 11, pad=0)),
}
"""One tuple of specs for each kind of data that an algorithm has to support."""


def small_encoder(specs: tuple[Spec, ...], *, dropout: float = 0.1, attend_padding: bool = False) -> Transformer:
    """An encoder of two blocks and width 32."""
    config = EncoderConfig(32, 2, 2, 16, 64, dropout, position_std=0.1, attend_padding=attend_padding)
    return Transformer(specs, config)


def random_inputs(specs: tuple[Spec, ...], size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Normal values, uniform categories and ids; one cell or reading in ten is empty; padding of all lengths."""

    def one(spec: Spec) -> Tensor:
        match spec:
            case PaddedGrid():
                x = torch.randn(size, spec.channels, *spec.size, generator=generator)
                length = torch.randint(2 * spec.patch[0], spec.size[0] + 1, (size, 1, 1), generator=generator)
                missing = torch.rand(x.shape, generator=generator) < 0.1
                missing[:, 0, : 2 * spec.patch[0]] = False  # at least two tokens are real
                return x.masked_fill(missing | (torch.arange(spec.size[0]) >= length), torch.nan)
            case Grid():
                return torch.randn(size, spec.channels, *spec.size, generator=generator)
            case Table():
                x = torch.randn(size, spec.num_features, generator=generator)
                for column, cardinality in enumerate(spec.cardinalities):
                    if cardinality:
                        x[:, column] = torch.randint(cardinality, (size,), generator=generator).float()
                return x.masked_fill(torch.rand(x.shape, generator=generator) < 0.1, torch.nan)
            case Tokens():
                ids = torch.randint(spec.vocab, (size, spec.length), generator=generator)
                if spec.pad is None:
                    return ids
                ids[ids == spec.pad] = (spec.pad + 1) % spec.vocab
                length = torch.randint(2, spec.length + 1, (size, 1), generator=generator)
                return ids.masked_fill(torch.arange(spec.length) >= length, spec.pad)

    return tuple(one(spec) for spec in specs)


def random_batch(
    specs: tuple[Spec, ...], size: int, *, num_views: int = 1, label: bool = False, seed: int = 0
) -> Batch:
    """A batch of random examples, with three classes if ``label`` is set."""
    generator = torch.Generator().manual_seed(seed)
    views = tuple(random_inputs(specs, size, generator) for _ in range(num_views))
    classes = torch.randint(3, (size,), generator=generator) if label else None
    return Batch(views, classes, torch.arange(size), seed)


def check_algorithm(cls: type[Algorithm], **hyper: object) -> None:
    """Check that an algorithm fulfils the contract of `Algorithm`, for every kind of data.

    Args:
        cls: the class.
        hyper: hyperparameters, if the defaults are too large for a test.

    Raises:
        AssertionError: the message says what is broken and for which kind of data.
        UserError: a keyword of the constructor cannot become a flag, or is not declared in the class itself.
    """
    name = f"{cls.__module__}:{cls.__name__}"
    algorithm_class(name)  # its source and the class agree
    unknown = set(cls.dabs) - {flag.name for flag in algorithm_flags(name)}
    assert not unknown, f"{name}.dabs sets {sorted(unknown)}, which are not keywords of its constructor"
    if not cls.trains:
        return
    kinds = SPECS if cls.needs_tokens else {**SPECS, "image, without tokens": SPECS["image"]}
    for kind, specs in kinds.items():
        torch.manual_seed(0)
        encoder = small_encoder(specs) if kind in SPECS else build_encoder(specs, ResNetConfig("basic", (1, 1, 1, 1)))
        algorithm = cls(encoder, **hyper)
        size = max(8, cls.min_batch)
        num_views = cls.num_views if algorithm.views == "augment" else 1
        batch = random_batch(specs, size, num_views=num_views, label=cls.needs_labels)
        for problem in _problems(algorithm, batch):
            raise AssertionError(f"{name} on {kind}: {problem}")


def _problems(algorithm: Algorithm, batch: Batch) -> Iterator[str]:
    start = copy.deepcopy(algorithm)
    algorithm.train()

    value, metrics, features = _seeded(algorithm, batch)
    if value.dim() or not value.isfinite():
        yield f"the loss must be one finite number, got {value}"
    for key, metric in metrics.items():
        if metric.dim() or metric.requires_grad:
            yield f"metric {key!r} must be a detached scalar"
    width = algorithm.encoder.width
    if features is not None and (features.requires_grad or features.shape != (len(batch.ids), width)):
        yield f"features must be detached and ({len(batch.ids)}, {width}), got {tuple(features.shape)}"

    value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for key, parameter in algorithm.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            yield f"no gradient reaches {key}: under DDP every trained parameter needs one in every step"
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            yield f"the gradient of {key} is not finite"
    if not any(p.grad is not None and p.grad.any() for p in algorithm.encoder.blocks.parameters()):
        yield "no gradient reaches the encoder's blocks"

    repeated = copy.deepcopy(start)
    if not torch.equal(_seeded(repeated, batch)[0], value):
        yield "the same weights, batch and seed give another loss: draw from batch.seed"

    _step(algorithm)
    other = copy.deepcopy(start)
    other.load_state_dict(algorithm.state_dict())
    for step in range(2):
        later = batch._replace(seed=batch.seed + 1 + step)
        if not torch.equal(_seeded(algorithm, later)[0], _seeded(other, later)[0]):
            yield "state_dict does not hold all state: after loading it the next losses differ"

    with torch.autocast("cpu", torch.bfloat16):
        value = _seeded(algorithm, batch)[0]
    algorithm.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if not value.isfinite() or any(p.grad is not None and not p.grad.isfinite().all() for p in algorithm.parameters()):
        yield f"not finite under bfloat16 autocast: loss {value}"


def _seeded(algorithm: Algorithm, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor], Tensor | None]:
    torch.manual_seed(1)  # dropout
    value, metrics, features = algorithm(batch)
    return value, metrics, features


def _step(algorithm: Algorithm) -> None:
    with torch.no_grad():
        for parameter in algorithm.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)
    algorithm.after_step(0.5)


def check_domain(domain: Domain, folder: Path, *, protocol: str = "v1", sample: int = 16) -> Data:
    """Check that a domain fulfils the contract of `Domain` and `Data`, on the raw files that are there.

    Args:
        domain: the card.
        folder: the folder of its raw files.
        protocol: as for ``Domain.load``. Under ``dabs`` validation may be the test split, and groups may be divided:
            DABS reports the split that it watches, and draws some splits by example.
        sample: examples of each split that are read.

    Returns:
        The data, for further checks.

    Raises:
        AssertionError: the message says what is broken.
        UserError: the files are missing or damaged.
    """
    assert all((domain.name, domain.modality, domain.title, domain.licence)), f"{domain}: an empty field"
    assert domain.batch_size > 1, f"{domain.name}: a batch of {domain.batch_size}"
    data, reloaded = domain.load(folder, protocol), domain.load(folder, protocol)
    assert data.specs, f"{domain.name}: no input"
    assert data.fingerprint == reloaded.fingerprint, f"{domain.name}: two loads give two fingerprints"

    splits, repeated = (
        {"pretrain": loaded.pretrain, **(loaded.labelled.splits if loaded.labelled else {})}
        for loaded in (data, reloaded)
    )
    for name, split in splits.items():
        where = f"{domain.name}, {name}"
        assert len(split), f"{where}: empty"
        assert name in repeated, f"{where}: a second load has no such split"
        assert np.array_equal(repeated[name].rows, split.rows), f"{where}: a second load gives other rows"
        _check_examples(where, data, split, sample)
        if data.labelled is not None and name != "pretrain":
            assert split.label is not None, f"{where}: no labels"
            _check_labels(where, data.labelled.task, split.label)
    dabs = protocol == "dabs"
    pairs = [("train", "test"), ("pretrain", "test"), ("train", "validation")]
    for one, two in pairs if dabs else [*pairs, ("validation", "test")]:
        if one in splits and two in splits:
            _check_apart(f"{domain.name}: {one} and {two}", splits[one], splits[two], groups=not dabs)
    return data


def _check_examples(where: str, data: Data, split: Split, sample: int) -> None:
    index = np.unique(np.linspace(0, len(split) - 1, num=min(sample, len(split))).astype(np.int64))
    inputs = data.normalise(split.batch(index))
    assert len(inputs) == len(data.specs), f"{where}: {len(inputs)} inputs for {len(data.specs)} specs"
    views = [inputs]
    if data.augment is not None:
        views.append(data.augment(inputs, torch.Generator().manual_seed(0)))
    for spec, x in [(spec, x) for view in views for spec, x in zip(data.specs, view, strict=True)]:
        match spec:
            case Grid():
                expected = (torch.float32, (len(index), spec.channels, *spec.size))
                absent = x.isnan() if isinstance(spec, PaddedGrid) else torch.zeros_like(x, dtype=torch.bool)
                assert (x.isfinite() | absent).all(), f"{where}: not finite"
            case Table():
                expected = (torch.float32, (len(index), spec.num_features))
                assert not x.isinf().any(), f"{where}: infinite"
                for column, cardinality in enumerate(spec.cardinalities):
                    codes = x[:, column][~x[:, column].isnan()]
                    fits = (codes == codes.long()) & (codes >= 0) & (codes < cardinality)
                    assert not cardinality or fits.all(), f"{where}: column {column} has codes beyond {cardinality}"
            case Tokens():
                expected = (torch.int64, (len(index), spec.length))
                assert x.min() >= 0, f"{where}: an id below 0"
                assert x.max() < spec.vocab, f"{where}: id {x.max()} in a vocabulary of {spec.vocab}"
        assert (x.dtype, tuple(x.shape)) == expected, f"{where}: {x.dtype} {tuple(x.shape)}, {spec} states {expected}"
    reread = data.normalise(split.batch(index))
    same = all(torch.equal(a.nan_to_num(math.pi), b.nan_to_num(math.pi)) for a, b in zip(inputs, reread, strict=True))
    assert same, f"{where}: reading twice gives other examples"


def _check_labels(where: str, task: Task, label: NDArray[np.generic]) -> None:
    numbers = np.asarray(label)
    match task.kind:
        case "classes" | "tokens":
            low = 0 if task.kind == "classes" else -1
            assert numbers.dtype == np.int64, f"{where}: labels are {numbers.dtype}, int64 is stated"
            inside = (numbers >= low).all() and (numbers < len(task.classes)).all()
            assert inside, f"{where}: a label beyond the {len(task.classes)} classes"
        case "multilabel":
            assert numbers.dtype == np.uint8, f"{where}: labels are {numbers.dtype}, uint8 is stated"
            assert numbers.shape[1:] == (len(task.classes),), f"{where}: labels {numbers.shape}"
            assert set(np.unique(numbers).tolist()) <= {0, 1}, f"{where}: labels other than 0 and 1"
        case "regression":
            assert numbers.dtype == np.float32, f"{where}: labels are {numbers.dtype}, float32 is stated"
            assert np.isfinite(numbers).all(), f"{where}: a label that is not finite"


def _check_apart(where: str, one: Split, two: Split, *, groups: bool) -> None:
    if all(a is b for a, b in zip(one.inputs, two.inputs, strict=True)):
        shared = np.intersect1d(one.rows, two.rows)
        assert not len(shared), f"{where} share {len(shared)} rows, row {shared[0]} among them"
    if groups and one.group is not None and two.group is not None:
        both = np.intersect1d(one.group, two.group)
        assert not len(both), f"{where} share {len(both)} groups, group {both[0]} among them"
