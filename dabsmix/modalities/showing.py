"""How an example is shown to a person: grids are drawn with matplotlib, and everything else is written in words.

An image is drawn as a picture, any other grid of two axes as a heat map, a sensor window as curves. Texts and sequences
are decoded, and of a table's row the first columns are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.modalities.columns import Column
from dabsmix.modalities.sequence import alphabet_of
from dabsmix.modalities.text import tokens_of
from dabsmix.spec import Grid, Table, Tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CHANNELS", "COLUMNS", "draw", "limits", "to_draw", "written"]

CHANNELS = 3
"""Channels of a sensor that are drawn; more curves cannot be told apart in a small picture."""

COLUMNS = 6
"""Columns of a table that are listed."""

LONGEST = 240
"""Characters of a text that are shown."""

EMPTY, UNSEEN = "(empty)", "(not in the training part)"


def to_draw(spec: Grid, modality: str, stored: NDArray[Any], normalised: NDArray[np.float32]) -> NDArray[Any]:
    """The values to draw, ``(B, channels, *size)``: images in their own colours, other grids as the encoder reads them.

    Args:
        spec: of this input.
        modality: of the data.
        stored: the examples as they are stored.
        normalised: the same as the encoder reads them, ``(B, channels, *size)``.
    """
    has_colours = "image" in modality and stored.shape[1:] == (spec.channels, *spec.size)
    values = stored if has_colours else normalised
    return values if len(spec.size) > 1 else values[:, :CHANNELS]


def limits(values: NDArray[Any]) -> tuple[float, float]:
    """The values that fill the scale of a picture: 0 and 255 for bytes, otherwise the smallest and the largest."""
    if values.dtype == np.uint8:
        return 0.0, 255.0
    finite = values[np.isfinite(values)].astype(float)
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def draw(axes: Axes, modality: str, example: NDArray[Any], low: float, high: float) -> None:
    """Draw one example of a grid; values between ``low`` and ``high`` fill the scale.

    Args:
        axes: what to draw on; its ticks and its frame are removed.
        modality: of the data.
        example: ``(channels, *size)``; of a volume the middle slice is drawn.
        low, high: see `limits`.
    """
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_anchor("W")
    if example.ndim == 2:
        axes.plot(example[:CHANNELS].T, linewidth=0.7)
        margin = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        return
    if example.ndim == 4:
        example = example[:, example.shape[1] // 2]
    if "image" not in modality:
        axes.imshow(example[0], origin="lower", aspect="auto", interpolation="none", vmin=low, vmax=high)
    elif len(example) >= 3:
        shares = (example[:3].astype(float) - low) / ((high - low) or 1.0)
        axes.imshow(shares.clip(0, 1).transpose(1, 2, 0), interpolation="none")
    else:
        axes.imshow(example[0], cmap="gray", interpolation="none", vmin=low, vmax=high)


def written(
    spec: Table | Tokens, stored: NDArray[Any], normalised: NDArray[Any], state: Mapping[str, Any]
) -> list[list[str]]:
    """Each example of a text, a sequence or a table in a few lines of words.

    Args:
        spec: of this input.
        stored: the examples as they are stored, ``(B, ...)``.
        normalised: the same as the encoder reads them.
        state: ``Data.state``, which has the tokenizer, the alphabet or the columns. Without it the tokens' ids and the
            columns' numbers are shown.

    Raises:
        UserError: a published tokenizer is not on this machine.
    """
    if isinstance(spec, Table):
        return [_cells(spec, *row, state) for row in zip(stored, normalised, strict=True)]
    rows = [ids if spec.pad is None else ids[ids != spec.pad] for ids in normalised]
    if "tokenizer" in state:
        texts = tokens_of(state).decode(rows)
    elif "symbols" in state or "alphabet" in state:
        symbols = alphabet_of(state).symbols
        texts = ["".join(symbols[i] for i in ids) for ids in rows]
    else:
        texts = [f"tokens {' '.join(map(str, ids))}" for ids in rows]
    return [[text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"] for text in texts]


def _cells(spec: Table, stored: NDArray[Any], normalised: NDArray[Any], state: Mapping[str, Any]) -> list[str]:
    """The first columns of a row, numbers as in the file."""
    columns = [Column.from_plain(values) for values in state.get("columns", ())]
    if len(columns) != spec.num_features:
        columns = [Column(f"column {j}") for j in range(1, spec.num_features + 1)]
    cells = zip(columns[:COLUMNS], stored, normalised, strict=False)
    lines = [f"{column.name}: {_cell(column, number, code)}" for column, number, code in cells]
    return [*lines, f"and {spec.num_features - COLUMNS} more columns"] if spec.num_features > COLUMNS else lines


def _cell(column: Column, number: float, code: float) -> str:
    if np.isnan(number):
        return EMPTY
    if column.dates:
        return str(np.datetime64(int(np.floor(number)), "D"))
    if column.categories is None:
        return f"{number:.6g}"
    return UNSEEN if np.isnan(code) else column.categories[int(code)]
