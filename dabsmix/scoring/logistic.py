"""Linear heads by convex optimisation: logistic regression solved to convergence at every strength of its penalty.

A head that gradient descent left half-way measures the optimiser. Here the problem is convex, so the answer does not
depend on a learning rate, an order of rows or a seed.

    minimise  mean_i loss(x_i W + b, y_i) + |W|² / (2 C n)

over standardised features x: softmax cross-entropy for classes and tokens, binary cross-entropy for each of several
labels, the bias free. It is scikit-learn's ``LogisticRegression(C=C)``. The weights are optimised in coordinates in
which the curvature of the loss is nearly that of a sphere: the principal axes of the features, each scaled by the
curvature along it. L-BFGS then needs tens of steps where it needs thousands on raw coordinates, and each strength
starts from the solution of the one before.
"""

# n examples, D width, r rank of the features, C outputs

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.data.domain import Task
from dabsmix.scoring.heads import Features, LinearHead, Scale, Setting, fit_ridge, scored

__all__ = ["LogisticGrid", "fit_logistic"]

ROWS = 16384  # of features in float64 at a time: what does not fit a device streams through it
CURVATURE = 0.25  # of the logistic loss at the origin, the most there is


@dataclass(frozen=True)
class LogisticGrid:
    """Which heads are fitted, one per pooling and strength.

    Attributes:
        poolings: which features to read, those present of ``mean``, ``cls`` and ``blocks`` (``tokens`` and ``raw``
            always).
        strengths: C in scikit-learn's sense, ascending: the larger, the weaker the penalty.
        tolerance: a solution has converged when no coordinate of the gradient of the objective, in the scaled
            coordinates, is above this.
        max_steps: of L-BFGS for each strength; the cap stops a head whose classes a hyperplane separates, whose
            weights would grow for ever.
    """

    poolings: tuple[str, ...] = ("mean", "cls", "blocks")
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
    tolerance: float = 1e-6
    max_steps: int = 1000


def fit_logistic(train: Features, task: Task, grid: LogisticGrid) -> list[LinearHead]:
    """A head for each pooling and strength, poolings in the order of the grid, the strength running fastest.

    A regression is least squares with the same penalty, in closed form.

    Args:
        train: the training part; features may lie in memory while the device holds a part at a time.
        task: any kind.
        grid: the settings.
    """
    named = [name for name in dict.fromkeys((*grid.poolings, "tokens", "raw")) if name in train.pooled]
    heads = []
    for name in named:
        if task.kind == "regression":
            one = Features({name: train.pooled[name]}, train.label, train.group)
            penalties = [1 / (strength * len(train)) for strength in grid.strengths]
            fitted = fit_ridge(one, task, penalties)
            pairs = zip(fitted, grid.strengths, strict=True)
            heads += [_renamed(head, {"pooling": name, "C": strength}) for head, strength in pairs]
            continue
        rows, label = scored(train.pooled[name], train.label)
        scale = Scale.of(rows)
        problem = _Problem(rows, label, scale, task)
        start = np.zeros((problem.rank + 1, task.num_outputs))
        for strength in grid.strengths:
            weight, bias, start = problem.solve(strength, start, grid.tolerance, grid.max_steps)
            like = rows.dtype
            heads.append(
                LinearHead({"pooling": name, "C": strength}, name, scale, weight.to(like), bias.to(like), task.kind)
            )
    return heads


def _renamed(head: LinearHead, setting: Setting) -> LinearHead:
    return LinearHead(setting, head.pooling, head.scale, head.weight, head.bias, head.kind)


class _Problem:
    """The features of one pooling along their principal axes, and the objective's value and gradient there."""

    def __init__(self, rows: Tensor, label: Tensor, scale: Scale, task: Task) -> None:
        self.rows, self.scale = rows, scale
        self.several = task.kind == "multilabel"
        self.outputs = task.num_outputs
        self.target = label if self.several else label.long()
        values, axes = _principal(rows, scale)
        real = values > values[-1].clamp_min(1e-300) * 1e-12  # the rest is rounding
        self.values, self.axes = values[real] / len(rows), axes[:, real]
        self.rank = int(real.sum())
        fits_at_once = len(rows) <= ROWS
        self.projected = self._project(rows) if fits_at_once else None

    def _project(self, chunk: Tensor) -> Tensor:
        projected: Tensor = self.scale(chunk).double() @ self.axes
        return projected

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk, target in zip(torch.split(self.rows, ROWS), torch.split(self.target, ROWS), strict=True):
            projected = self._project(chunk) if self.projected is None else self.projected
            yield projected, target.double() if self.several else target

    def objective(self, weight: Tensor, penalty: float) -> tuple[float, Tensor]:
        """Value and gradient by ``weight`` ``(r+1, C)`` on the principal axes; the last row is the bias."""
        value, gradient = 0.0, torch.zeros_like(weight)
        for x, target in self._chunks():
            logits = x @ weight[:-1] + weight[-1]
            if self.several:
                value += float(F.binary_cross_entropy_with_logits(logits, target, reduction="sum"))
                residual = logits.sigmoid() - target
            else:
                log_share, column = logits.log_softmax(dim=1), target[:, None]
                value -= float(log_share.gather(1, column).sum())
                residual = log_share.exp().scatter_add_(1, column, logits.new_full(column.shape, -1))
            gradient[:-1] += x.T @ residual
            gradient[-1] += residual.sum(dim=0)
        n = len(self.target)
        value = value / n + penalty / 2 * float(weight[:-1].square().sum())
        gradient /= n
        gradient[:-1] += penalty * weight[:-1]
        return value, gradient

    def solve(
        self, strength: float, start: NDArray[np.float64], tolerance: float, max_steps: int
    ) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
        """Weight ``(D, C)`` and bias ``(C,)``, and the solution on the principal axes for the next strength."""
        from scipy.optimize import minimize

        penalty = 1 / (strength * len(self.target))
        spread = (CURVATURE * self.values + penalty).rsqrt()
        spread = torch.cat([spread, spread.new_full((1,), CURVATURE**-0.5)])[:, None]
        device, shape = self.values.device, start.shape

        def scaled(flat: NDArray[np.float64]) -> tuple[float, Any]:
            value, gradient = self.objective(torch.from_numpy(flat.reshape(shape)).to(device) * spread, penalty)
            return value, (gradient * spread).cpu().numpy().ravel()

        begun = start / spread.cpu().numpy()
        limits: Any = {"gtol": tolerance, "ftol": 0.0, "maxiter": max_steps, "maxfun": 2 * max_steps}
        # scipy's BLAS works on vectors of the weights' length here: its threads would only fight with torch's for cores
        with _threadpools().limit(limits=1, user_api="blas"):
            solved = minimize(scaled, begun.ravel(), jac=True, method="L-BFGS-B", options=limits)
        solution = solved.x.reshape(shape) * spread.cpu().numpy()
        weight = torch.from_numpy(solution).to(device)
        return self.axes @ weight[:-1], weight[-1], solution


@cache
def _threadpools() -> Any:
    """The libraries that have thread pools; looking for them takes longer than solving for a few labels does."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _principal(rows: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, ``(k,)``, and axes ``(D, k)`` of the scaled features' inner products, k = min(n, D)."""
    if len(rows) < rows.shape[1]:  # through the smaller matrix
        x = scale(rows).double()
        values, vectors = torch.linalg.eigh(x @ x.T)
        return values, x.T @ vectors / values.clamp_min(1e-300).sqrt()
    gram = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for chunk in torch.split(rows, ROWS):
        x = scale(chunk).double()
        gram += x.T @ x
    values, axes = torch.linalg.eigh(gram)
    return values, axes
