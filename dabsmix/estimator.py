"""Self-supervised pretraining as a scikit-learn transformer: ``SelfSupervised().fit(X).transform(X)``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from dabsmix.modalities import memory
from dabsmix.source import Modality, Source

__all__ = ["SelfSupervised"]


class SelfSupervised(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Learn features from unlabelled examples, then give each example's.

    What is fitted, by modality (n examples):

    - tabular: a DataFrame, or an array ``(n, columns)``. Cells may be empty; columns of text are categories.
    - sensor: windows ``(n, channels, length)``, or ``(n, length)`` with one channel. The channels come before the
      readings: transpose an array ``(n, length, channels)`` by ``X.transpose(0, 2, 1)``.
    - image: PIL images, or an array ``(n, height, width)``, with 3 channels also first or last, of whole numbers from 0
      to 255 or floats from 0 to 1.
    - text: strings.

    No run's folder is left behind; use `dabsmix.pretrain` to keep one.

    Args:
        modality: tabular, image, sensor or text.
        algorithm: a name that `dabsmix list algorithms` shows, or your own as ``"module:Class"``.
        encoder: a name that `dabsmix list encoders` shows.
        steps: optimizer steps.
        batch_size: examples per step; None for 256, or all if there are fewer.
        lr: AdamW's learning rate; None for the default.
        pooling: ``mean`` or ``cls``, which feature of an example.
        random_state: seed of weights, batches, partners, masks and dropout.
        hyper: hyperparameters of the algorithm, by name.

    Attributes:
        extractor_: the `FeatureExtractor` that was learnt.
        n_features_in_: columns of the table; only for arrays and DataFrames.
    """

    def __init__(
        self,
        modality: Modality = "tabular",
        algorithm: str = "dmix",
        *,
        encoder: str = "tiny",
        steps: int = 500,
        batch_size: int | None = None,
        lr: float | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        random_state: int = 0,
        hyper: Mapping[str, Any] | None = None,
    ) -> None:
        self.modality = modality
        self.algorithm = algorithm
        self.encoder = encoder
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.pooling = pooling
        self.random_state = random_state
        self.hyper = hyper

    def fit(self, X: Any, y: Any = None) -> SelfSupervised:
        """Pretrain on these examples; ``y`` is ignored.

        Raises:
            UserError: a ValueError; fewer than two examples, or one that cannot be read.
        """
        from dabsmix.api import pretrain
        from dabsmix.verbs.embed import load_encoder

        data = memory.whole(self._checked(X, reset=True), self.modality)
        data = replace(data, source=Source(modality=self.modality))
        with tempfile.TemporaryDirectory(prefix="dabsmix-") as folder:
            run = pretrain(
                data,
                self.algorithm,
                encoder=self.encoder,
                steps=self.steps,
                batch_size=self.batch_size,
                lr=self.lr,
                seed=self.random_state,
                out=folder,
                **(self.hyper or {}),
            )
            self.extractor_ = load_encoder(run)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The features of these examples, float32 ``(n, D)``."""
        check_is_fitted(self, "extractor_")
        features: NDArray[np.float32] = self.extractor_.features(self._checked(X, reset=False), pooling=self.pooling)
        return features

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """``selfsupervised0``, ``selfsupervised1``, ..."""
        check_is_fitted(self, "extractor_")
        return np.array([f"selfsupervised{j}" for j in range(self.extractor_.width)], dtype=object)

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """Tables as scikit-learn checks them; a DataFrame keeps its columns of text."""
        if self.modality != "tabular":
            return X
        if memory.is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        least = 2 if reset else 1
        return validate_data(
            self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan", ensure_min_samples=least
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.transformer_tags.preserves_dtype = []  # features are float32, whatever came in
        return tags
