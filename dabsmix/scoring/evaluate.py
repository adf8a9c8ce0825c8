"""From features to results: every probe of a protocol chosen on validation, then scored on test with an interval."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Split, Task
from dabsmix.errors import UserError
from dabsmix.scoring.heads import Features, Head
from dabsmix.scoring.intervals import interval, measure
from dabsmix.scoring.metrics import Scores, Undefined, metric
from dabsmix.scoring.protocols import Fit, Protocol, fits, quicker, refit
from dabsmix.scoring.results import BY_CLASS, Result, prediction_key
from dabsmix.scoring.selection import Selected, compare_within, few_labels, label_subsets, select

__all__ = ["Chosen", "choose", "kept", "restored", "result", "score", "share"]

Chosen = Mapping[tuple[str, str], list[Selected]]  # by probe and share of the labels: one head per draw


def choose(
    train: Features,
    validation: Features,
    task: Task,
    rules: Protocol,
    labels: tuple[str, ...],
    *,
    redraw: Callable[[int], Features] | None = None,
    probes: Mapping[str, Fit] | None = None,
) -> Chosen:
    """Every probe of a protocol at every share of the labels, fitted on train and chosen on validation.

    Args:
        train, validation: with all their labels.
        task: whose labels they are.
        rules: the protocol.
        labels: shares as `share` reads them.
        redraw: training features of each epoch, see ``linear.fit_linear``; with all labels alone.
        probes: other ones than the protocol's, for a yardstick.

    Raises:
        UserError: a share is none, or asks for labels per class of a task without classes.
    """
    if redraw is not None and set(labels) != {"1"}:
        raise UserError(f"--labels {' '.join(labels)}: protocol {rules.name} is defined with all labels alone (1)")
    compared = fits(quicker(rules), task) if probes is None else probes  # where many draws are folded
    probes = fits(rules, task, redraw=redraw) if probes is None else probes
    wanted = metric(task.metric)
    chosen: dict[tuple[str, str], list[Selected]] = {}
    for label in labels:
        amount = share(label, task)
        part = amount.get("fraction") or amount["per_class"] * task.num_outputs / len(train)
        num_draws = min(rules.draws, max(3, round(0.5 / part)))
        if rules.within is None or amount.get("fraction") == 1:
            draws = few_labels(train, validation, task, draws=num_draws, **amount)
            for probe, fit in probes.items():
                chosen[probe, label] = select(fit, draws, wanted)
            continue
        for number, rows in enumerate(label_subsets(train.label, task, draws=num_draws, **amount)):
            drawn = train.take(rows)
            for probe, fit in compared.items():
                found = compare_within(fit, drawn, task, wanted, seed=number)
                setting, value, candidates = found or (rules.within.get(probe, {}), None, 1)
                head = refit(rules, task, probe, probes[probe], drawn, setting)
                chosen.setdefault((probe, label), []).append(Selected(head, value, candidates))
    return chosen


def score(
    chosen: Chosen, test: Features, task: Task, others: Sequence[str] = ()
) -> tuple[list[Result], dict[str, NDArray[Any]]]:
    """One result per probe and share of the labels, and every test example's prediction by ``probe@share``.

    ``others`` are metrics to report beside.
    """
    results, predictions = [], {}
    for (probe, label), selected in chosen.items():
        scores = [each.head.predict(test) for each in selected]
        found = result(probe, label, scores, test, task, _selected(selected), others)
        results.append(replace(found, num_features=max(_num_features(each.head, test) for each in selected)))
        predictions[prediction_key(probe, label)] = kept(scores, task)
    return results, predictions


def result(
    probe: str,
    label: str,
    scores: Sequence[Scores],
    test: Features | Split,
    task: Task,
    selected: Mapping[str, Any],
    others: Sequence[str] = (),
) -> Result:
    """One score with its interval, as a transfer file holds it.

    Args:
        probe: its name.
        label: the share of the labels that it was fitted with.
        scores: predictions on test in the form of ``metrics.py``, one array per draw of the labels.
        test: whose labels and groups count.
        task: names the metric.
        selected: what was chosen, with its ``validation`` score, from how many ``candidates``.
        others: metrics to report beside; one that has no value on these labels is left out.
    """
    wanted = metric(task.metric)
    assert test.label is not None
    found = interval(wanted, [measure(wanted, scores, test.label, test.group)])
    beside = {}
    for name in others:
        with suppress(Undefined):
            beside[name] = fmean(metric(name)(each, test.label) for each in scores)
    return Result(
        probe=probe,
        label_fraction=label,
        metric=wanted.name,
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        units=found.units,
        draws=len(scores),
        selected=selected,
        others=beside,
    )


def _selected(draws: Sequence[Selected]) -> dict[str, Any]:
    """What was chosen: one setting for all draws, or where each draw chose for itself, the setting of each."""
    first = draws[0]
    if all(each.setting == first.setting and each.validation == first.validation for each in draws):
        found = {**first.setting, "validation": first.validation, "candidates": first.candidates}
        return found | ({"at_edge": True} if first.at_edge else {})
    scores = [each.validation for each in draws if each.validation is not None]
    return {
        "by_draw": [dict(each.setting) for each in draws],
        "validation": fmean(scores) if scores else None,
        "candidates": max(each.candidates for each in draws),
    }


def _num_features(head: Head, features: Features) -> int:
    pooling = head.setting.get("pooling")
    return features.pooled[pooling].shape[-1] if isinstance(pooling, str) else 0


def kept(scores: Sequence[Scores], task: Task) -> NDArray[Any]:
    """Predictions to keep, first axis the draws: the class alone where the metric reads no more, else every score."""
    whole = np.stack(scores)
    by_class = task.kind == "classes" and task.metric in BY_CLASS
    return whole.argmax(axis=-1).astype(np.int32) if by_class else whole


def restored(drawn: NDArray[Any], task: Task) -> NDArray[Any]:
    """Predictions that `kept` made compact, in the form of ``metrics.py``: of a class alone, one for it and 0 else."""
    if drawn.dtype.kind != "i":
        return drawn
    one_hot: NDArray[np.float32] = np.eye(task.num_outputs, dtype=np.float32)[drawn]
    return one_hot


def share(text: str, task: Task, train: NDArray[Any] | None = None) -> dict[str, Any]:
    """``0.1`` or ``5/class`` as arguments of ``selection.few_labels`` and ``selection.label_subsets``.

    Args:
        text: the share.
        task: whose labels these are.
        train: the training labels, to see whether every class has as many.

    Raises:
        UserError: it is neither, the task has no classes to draw from, or a class has fewer examples.
    """
    per_class = re.fullmatch(r"([1-9][0-9]*)/class", text)
    if per_class and task.kind != "classes":
        raise UserError(f"--labels {text}: a task of kind {task.kind} has no labels per class; give a fraction")
    if per_class:
        counts = np.bincount(train, minlength=task.num_outputs) if train is not None else np.array([math.inf])
        if counts.min() < int(per_class[1]):
            fewest = task.classes[int(counts.argmin())]
            raise UserError(
                f"--labels {text}: class {fewest!r} has {counts.min()} examples in train; give at most "
                f"{max(1, counts.min())}/class, or a fraction"
            )
        return {"per_class": int(per_class[1])}
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return {"fraction": float(text)}
    raise UserError(f"--labels {text}: give a fraction above 0 and at most 1, or a number such as 5/class")
