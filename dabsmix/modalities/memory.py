"""Examples that a user has in memory: arrays, tensors, DataFrames, PIL images, strings.

`further` reads them the way a training run's data were read; `whole` makes a data set to pretrain on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import stacked
from dabsmix.data.domain import Data, Split, as_stored
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.spec import Grid, PaddedGrid, Spec, Table, Tokens

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["further", "is_frame", "shape_of", "stored", "whole"]

NUMBERS = 1 << 20
"""Numbers of an array that are converted at a time."""


def is_frame(x: object) -> bool:
    """Whether it is a pandas DataFrame, found out without importing pandas."""
    return type(x).__module__.partition(".")[0] == "pandas" and hasattr(x, "columns")


def further(x: Any, modality: str, specs: tuple[Spec, ...], state: Mapping[str, Any]) -> Data | None:
    """Examples in memory, read the way a training run read its own; None if the state does not say how.

    Args:
        x: image: PIL images, or uint8 (or bool, or floats from 0 to 1) ``(n, height, width)``, with 3 channels last or
            first; spectrogram: waves ``(n, samples)`` at the run's rate, floats from -1 to 1 or the integers of a WAV
            file, or decibels ``(n, 1, mels, frames)``; sensor: windows ``(n, channels, length)``, or a DataFrame of
            readings; tabular: a DataFrame with the columns of the training data, or ``(n, columns)`` in their order;
            text and sequence: strings, or ids ``(n, length)``.
        modality: of the run.
        specs: of the run's encoder.
        state: ``Data.state`` of the run.

    Raises:
        UserError: they have another shape or type, or hold a value that cannot be read.
    """
    if len(specs) != 1:
        return None
    (spec,) = specs
    match modality, spec:
        case "image", Grid() if "size" in state:
            return _rows(_pictures(x, spec, int(state.get("depth", 8))), spec, _standardise(state))
        case "spectrogram", Grid() if "form" in state:
            return _rows(_spectrograms(x, spec, state), spec, _standardise(state))
        case "sensor", Grid() if "channels" in state and is_frame(x):
            from dabsmix.modalities import sensor

            return sensor.load_further(x, state)[0]
        case "tabular", Table() if "columns" in state:
            from dabsmix.modalities import tabular

            frame = x if is_frame(x) else _frame(x, [name for name, *_ in state["columns"]])
            return tabular.load_further(frame, state)[0]
        case "text", Tokens() if "tokenizer" in state:
            from dabsmix.modalities import text

            if not _is_numeric(x):
                return _rows(text.tokens_of(state).encode(_strings(x), spec.length), spec, text.as_int64)
        case "sequence", Tokens() if ("alphabet" in state or "symbols" in state) and not _is_numeric(x):
            from dabsmix.modalities import sequence, text

            return _rows(sequence.encoded(_strings(x), state, spec.length), spec, text.as_int64)
    return as_they_are(x, spec, state)


def as_they_are(x: Any, spec: Spec, state: Mapping[str, Any]) -> Data | None:
    """An array in the shape of the spec, standardised; None if the state has no statistics."""
    from dabsmix.modalities.text import as_int64

    if isinstance(spec, Tokens):
        return _rows(stored(x, spec), spec, as_int64)
    return _rows(stored(x, spec), spec, _standardise(state)) if "mean" in state else None


def _standardise(state: Mapping[str, Any]) -> Standardise:
    mean, std = (tuple(x) if isinstance(x, list | tuple) else x for x in (state["mean"], state["std"]))
    return Standardise(mean, std)


def whole(x: Any, modality: str) -> Data:
    """Examples in memory as a data set without labels; statistics, categories or tokenizer are made from them.

    Args:
        x: see `further`. Square images whose side is a multiple of 4 up to 64 keep their size, others are resized to
            32x32; patches have 4x4 pixels. Windows are cut into at most 64 tokens.
        modality: image, sensor, tabular or text.

    Raises:
        UserError: they have another shape or type, or hold a value that cannot be read.
    """
    match modality:
        case "tabular":
            from dabsmix.modalities import tabular

            return tabular.load_frame(x if is_frame(x) else _frame(x, None))
        case "image":
            return _image_set(x)
        case "sensor":
            return _sensor_set(x)
        case "text":
            return _text_set(x)
    raise UserError(f"modality {modality!r}: arrays in memory are read as image, sensor, tabular or text")


def stored(x: Any, spec: Spec) -> NDArray[Any]:
    """An array of examples in the shape of a spec, ``(n, ...)``.

    Raises:
        UserError: it has another shape, is not numeric, or holds infinite values (or NaN, if no value may be missing).
    """
    array = _array(x)
    shape, words = shape_of(spec)
    if isinstance(spec, Grid) and spec.channels == 1 and array.shape[1:] == spec.size:
        array = array[:, None]
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        raise UserError(f"examples of shape {array.shape}: the encoder reads {words}; bring the axes into this form")
    if isinstance(spec, Tokens):
        if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < spec.vocab):
            raise UserError(f"token ids must be whole numbers from 0 to {spec.vocab - 1}")
        return stacked(part.astype(np.int32) for _, part in _blocks(array))
    return stacked(_finite(first, part.astype(np.float32), spec) for first, part in _blocks(array))


def shape_of(spec: Spec) -> tuple[tuple[int, ...], str]:
    """The shape of one example, and that of an array of them in words."""
    match spec:
        case Grid():
            shape: tuple[int, ...] = (spec.channels, *spec.size)
            axes = "channels, " + ("length", "height, width", "depth, height, width")[len(spec.size) - 1]
        case Table():
            shape, axes = (spec.num_features,), "columns"
        case Tokens():
            shape, axes = (spec.length,), "tokens"
    return shape, f"an array (n, {', '.join(map(str, shape))}), which is (n, {axes})"


def _blocks(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Consecutive examples, about `NUMBERS` numbers at a time, each with the number of its first; at least one."""
    rows = max(1, NUMBERS // max(1, math.prod(array.shape[1:])))
    return ((first, array[first : first + rows]) for first in range(0, max(1, len(array)), rows))


def _finite(first: int, part: NDArray[np.float32], spec: Spec) -> NDArray[np.float32]:
    """These examples, of which the first has this number, unless a value is infinite or may not be missing."""
    bad = np.isinf(part) if isinstance(spec, Table | PaddedGrid) else ~np.isfinite(part)
    if bad.any():
        row = first + int(np.argwhere(bad)[0][0])
        raise UserError(f"example {row} holds {part[bad][0]}; the encoder reads finite numbers: fix or leave it out")
    return part


def _rows(rows: NDArray[Any], spec: Spec, normalise: Any = as_stored) -> Data:
    if not len(rows):
        raise UserError("there are no examples: give at least one")
    return Data((spec,), Split((rows,), np.arange(len(rows))), None, fingerprint="", normalise=normalise)


def _array(x: Any) -> NDArray[Any]:
    """A numpy array from numpy, torch, pandas, or nested sequences of numbers; copied to the CPU."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    elif is_frame(x):
        x = x.to_numpy()
    array = np.asarray(x)
    if array.dtype == object:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"not an array of numbers ({error})") from error
    if array.dtype.kind == "U":
        raise UserError("texts where numbers are needed: give arrays, or the path of one file or folder")
    if array.dtype.kind not in "biuf":
        raise UserError(f"an array of {array.dtype}: give numbers")
    return array


def _is_numeric(x: Any) -> bool:
    return hasattr(x, "detach") or (isinstance(x, np.ndarray) and x.dtype.kind in "iu")


def _frame(x: Any, names: Sequence[str] | None) -> pd.DataFrame:
    """A table ``(n, columns)`` without names, as a DataFrame with the column names of the training data."""
    import pandas as pd

    array = np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)
    if array.ndim != 2 or not array.shape[1]:
        raise UserError(f"a table is an array (rows, columns), got one of shape {array.shape}")
    if names is None:
        names = [f"x{j}" for j in range(array.shape[1])]
    if len(names) != array.shape[1]:
        raise UserError(f"a table of {array.shape[1]} columns; the encoder reads {len(names)}: {', '.join(names)}")
    return pd.DataFrame(array, columns=list(names))


def _strings(x: Any) -> list[str]:
    texts = [x] if isinstance(x, str) else list(x)
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"text {i} is {text!r}: give a string that is not blank")
    return texts


# --- images


def _pictures(x: Any, spec: Grid, bits: int) -> NDArray[Any]:
    """Images as stored: unsigned integers ``(n, channels, side, side)``."""
    from PIL import Image

    from dabsmix.modalities.image import opened, resized, rgb

    side, top = spec.size[0], 2**bits - 1
    dtype = np.uint8 if bits == 8 else np.uint16
    if isinstance(x, Image.Image):
        x = [x]
    if isinstance(x, list | tuple) and x and isinstance(x[0], Image.Image | str | Path):
        images = (
            opened(Path(image)) if isinstance(image, str | Path) else rgb(image, f"image {number}")
            for number, image in enumerate(x)
        )
        return np.stack([resized(image, side) for image in images])
    array = _channels_first(_array(x), spec.channels)
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
            raise UserError("images of floats must have values from 0 to 1; give those, or whole numbers from 0 to 255")
        array = (array * top).round()
    elif array.dtype.kind == "b":
        array = array * top
    elif array.min(initial=0) < 0 or array.max(initial=0) > top:
        raise UserError(f"images of whole numbers must have values from 0 to {top}, got up to {array.max()}")
    array = array.astype(dtype)
    if array.shape[2:] == spec.size:
        return array
    if spec.channels != 3 or bits != 8:
        raise UserError(f"images of {array.shape[2]}x{array.shape[3]}: the encoder reads {side}x{side}; resize them")
    return np.stack([resized(Image.fromarray(image.transpose(1, 2, 0)), side) for image in array])


def _channels_first(array: NDArray[Any], channels: int) -> NDArray[Any]:
    """``(n, height, width)``, ``(n, height, width, c)`` or ``(n, c, height, width)`` to ``(n, channels, ...)``."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in (1, channels) and array.shape[1] not in (1, channels):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, channels):
        raise UserError(f"images of shape {array.shape}: give (n, height, width), or {channels} channels last or first")
    return np.ascontiguousarray(np.repeat(array, channels, axis=1) if array.shape[1] < channels else array)


def _image_set(x: Any) -> Data:
    from dabsmix.modalities.image import Pixels

    side, patch = 32, 4
    shape = getattr(x, "shape", ())
    sides = [length for length in shape[1:] if length not in (1, 3)]
    if len(sides) == 2 and sides[0] == sides[1] and sides[0] % patch == 0 and sides[0] <= 64:
        side = int(sides[0])
    spec = Grid(3, (side, side), (patch, patch))
    images = _pictures(x, spec, 8)
    standardise = Standardise.of(images, np.arange(len(images)))
    pixels = Pixels(standardise, 255, flip=True)
    return Data(
        (spec,),
        Split((images,), np.arange(len(images))),
        None,
        fingerprint=_digest(images),
        normalise=pixels.normalise,
        augment=pixels.augment,
        state={"size": side, "patch": patch, "mean": standardise.mean, "std": standardise.std},
    )


# --- sounds, sensors, texts


def _spectrograms(x: Any, spec: Grid, state: Mapping[str, Any]) -> NDArray[np.float16]:
    """Decibels as they are stored, computed from waves ``(n, samples)`` or given as decibels."""
    from dabsmix.modalities.spectrogram import Form, log_mel

    array = _array(x)
    if array.ndim != 2:
        return stored(x, spec).astype(np.float16)
    form = Form(**state["form"])
    waves = np.zeros((len(array), form.samples), np.float32)
    waves[:, : array.shape[1]] = _from_minus_one_to_one(array[:, : form.samples])
    if not np.isfinite(waves).all():
        raise UserError("waves hold NaN or infinite values; leave those examples out")
    decibels = log_mel(waves, form.rate, form, squared=bool(state.get("squared", False)))
    return decibels.astype(np.float16)


def _from_minus_one_to_one(waves: NDArray[Any]) -> NDArray[Any]:
    """Waves as sound files are read: integers become shares of the full scale of their type, floats stay."""
    if waves.dtype.kind == "f":
        return waves
    if waves.dtype == np.uint8:  # WAV files store 8 bits with silence at 128
        return (waves.astype(np.float32) - 128) / 128
    if waves.dtype in (np.int16, np.int32):
        return waves / np.float32(2 ** (8 * waves.dtype.itemsize - 1))
    # other integers are in no WAV file: their full scale would be a guess
    raise UserError(f"waves of {waves.dtype}: give floats from -1 to 1, or int16, int32 or uint8 as in WAV files")


def _sensor_set(x: Any) -> Data:
    from dabsmix.modalities.sensor import token_length

    windows = _array(x)
    if windows.ndim == 2:
        windows = windows[:, None]
    if windows.ndim != 3:
        raise UserError(f"sensor windows are an array (n, channels, length), got one of shape {windows.shape}")
    length = windows.shape[2]
    spec = Grid(windows.shape[1], (length,), (token_length(length),))
    windows = stored(windows, spec)
    standardise = Standardise.of(windows, np.arange(len(windows)))
    state = {"window": length, "mean": standardise.mean, "std": standardise.std}
    return Data(
        (spec,),
        Split((windows,), np.arange(len(windows))),
        None,
        fingerprint=_digest(windows),
        normalise=standardise,
        state=state,
    )


def _text_set(x: Any) -> Data:
    from dabsmix.modalities import text

    texts = _strings(x)
    tokens = text.train_tokenizer(texts, 8000)
    length = text.LENGTH
    rows = tokens.encode(texts, length)
    return Data(
        (Tokens(length, tokens.vocab, tokens.pad),),
        Split((rows,), np.arange(len(rows))),
        None,
        fingerprint=_digest(rows),
        normalise=text.as_int64,
        state={"length": length, "tokenizer": tokens.state()},
    )


def _digest(array: NDArray[Any]) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
