"""From features to results: every probe of a protocol is chosen on validation, then scored on test with an interval."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import scratch
from dabsmix.data.domain import Split, Task
from dabsmix.errors import UserError
from dabsmix.scoring.heads import Features, Head
from dabsmix.scoring.intervals import interval, measure
from dabsmix.scoring.metrics import Scores, Undefined, metric
from dabsmix.scoring.protocols import Fit, TransferProtocol, fits, quicker, refit
from dabsmix.scoring.results import BY_CLASS, Result, prediction_key
from dabsmix.scoring.selection import Selected, compare_within, few_labels, label_subsets, select

__all__ = ["SelectedHeads", "choose", "compact", "result", "score", "share"]

SelectedHeads = Mapping[tuple[str, str], list[Selected]]  # by probe and share of the labels: one head per draw


def choose(
    train: Features,
    validation: Features,
    task: Task,
    rules: TransferProtocol,
    labels: tuple[str, ...],
    *,
    redraw: Callable[[int], Features] | None = None,
    probes: Mapping[str, Fit] | None = None,
) -> SelectedHeads:
    """Every probe of a protocol at every share of the labels, fitted on train and chosen on validation.

    Args:
        train, validation: with all their labels.
        task: whose labels they are.
        rules: the protocol.
        labels: shares as `share` reads them.
        redraw: training features of each epoch, see ``linear.fit_linear``; only with all labels.
        probes: a yardstick's, instead of those of the protocol.

    Raises:
        UserError: a share is not valid, or asks for labels per class in a task without classes.
    """
    if redraw is not None and set(labels) != {"1"}:
        raise UserError(f"--labels {' '.join(labels)}: protocol {rules.name} is defined only with all labels (1)")
    compared = fits(quicker(rules), task) if probes is None else probes  # for cross-validation within many draws
    probes = fits(rules, task, redraw=redraw) if probes is None else probes
    main = metric(task.metric)
    chosen: dict[tuple[str, str], list[Selected]] = {}
    for label in labels:
        amount = share(label, task)
        part = amount.get("fraction") or amount["per_class"] * task.num_outputs / len(train)
        num_draws = min(rules.draws, max(3, round(0.5 / part)))
        if rules.within is None or amount.get("fraction") == 1:
            draws = few_labels(train, validation, task, draws=num_draws, **amount)
            for probe, fit in probes.items():
                chosen[probe, label] = select(fit, draws, main)
            continue
        for number, rows in enumerate(label_subsets(train.label, task, draws=num_draws, **amount)):
            drawn = train.take(rows)
            for probe, fit in compared.items():
                within = compare_within(fit, drawn, task, main, seed=number)
                setting, value, candidates = within or (rules.within.get(probe, {}), None, 1)
                head = refit(rules, task, probe, probes[probe], drawn, setting)
                chosen.setdefault((probe, label), []).append(Selected(head, value, candidates))
    return chosen


def score(
    chosen: SelectedHeads, test: Features, task: Task, others: Sequence[str] = ()
) -> tuple[list[Result], dict[str, NDArray[Any]]]:
    """One result per probe and share of the labels, and every test example's prediction by ``probe@share``.

    ``others`` are further metrics to report.
    """
    results, predictions = [], {}
    for (probe, label), selected in chosen.items():
        scores = _predictions(selected, test)
        summary = result(probe, label, scores, test, task, _selected(selected), others)
        results.append(replace(summary, num_features=max(_num_features(choice.head, test) for choice in selected)))
        predictions[prediction_key(probe, label)] = compact(scores, task)
    return results, predictions


def result(
    probe: str,
    label: str,
    scores: Sequence[Scores] | Scores,
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
        others: further metrics to report; one without a value on these labels is left out.
    """
    main = metric(task.metric)
    assert test.label is not None
    ends = interval(main, [measure(main, scores, test.label, test.group)])
    further = {}
    for name in others:
        with suppress(Undefined):
            further[name] = fmean(metric(name)(draw, test.label) for draw in scores)
    return Result(
        probe=probe,
        label_fraction=label,
        metric=main.name,
        value=ends.value,
        low=ends.low,
        high=ends.high,
        n=ends.n,
        units=ends.units,
        draws=len(scores),
        selected=selected,
        others=further,
    )


def _predictions(draws: Sequence[Selected], test: Features) -> NDArray[np.float32]:
    """Scores of every draw, ``(draws, n, ...)``, in a file where they are large."""
    first = draws[0].head.predict(test)
    scores = scratch((len(draws), *first.shape), first.dtype)
    scores[0] = first
    for number, choice in enumerate(draws[1:], start=1):
        scores[number] = choice.head.predict(test)
    return scores


def _selected(draws: Sequence[Selected]) -> dict[str, Any]:
    """What was chosen: one setting for all draws, or the setting of each if each draw chose for itself."""
    first = draws[0]
    if all(choice.setting == first.setting and choice.validation == first.validation for choice in draws):
        common = {**first.setting, "validation": first.validation, "candidates": first.candidates}
        return common | ({"at_edge": True} if first.at_edge else {})
    scores = [choice.validation for choice in draws if choice.validation is not None]
    return {
        "by_draw": [dict(choice.setting) for choice in draws],
        "validation": fmean(scores) if scores else None,
        "candidates": max(choice.candidates for choice in draws),
    }


def _num_features(head: Head, features: Features) -> int:
    pooling = head.setting.get("pooling")
    return features.pooled[pooling].shape[-1] if isinstance(pooling, str) else 0


def compact(scores: Sequence[Scores] | Scores, task: Task) -> NDArray[Any]:
    """Predictions to store, one draw per first index: only the class if the metric needs no more, else every score."""
    if task.kind == "classes" and task.metric in BY_CLASS:
        return np.stack([draw.argmax(axis=-1).astype(np.int32) for draw in scores])
    return scores if isinstance(scores, np.ndarray) else np.stack(scores)


def share(text: str, task: Task, train: NDArray[Any] | None = None) -> dict[str, Any]:
    """``0.1`` or ``5/class`` as arguments of ``selection.few_labels`` and ``selection.label_subsets``.

    Args:
        text: the share.
        task: whose labels these are.
        train: the training labels, to check that every class has that many.

    Raises:
        UserError: it is neither of the two, the task has no classes, or a class has fewer examples.
    """
    per_class = re.fullmatch(r"([1-9][0-9]*)/class", text)
    if per_class and task.kind != "classes":
        raise UserError(f"--labels {text}: a task of kind {task.kind} has no labels per class; give a fraction")
    if per_class:
        counts = np.bincount(train, minlength=task.num_outputs) if train is not None else np.array([math.inf])
        if (least := counts.min()) < int(per_class[1]):
            fewest = task.classes[int(counts.argmin())]
            examples = "1 example" if least == 1 else f"{least} examples"
            remedy = f"give at most {least}/class, or a fraction" if least else "give a fraction"
            raise UserError(f"--labels {text}: class {fewest!r} has {examples} in train; {remedy}")
        return {"per_class": int(per_class[1])}
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return {"fraction": float(text)}
    raise UserError(f"--labels {text}: give a fraction above 0 and at most 1, or a number such as 5/class")
