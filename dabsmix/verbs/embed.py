"""Features of further examples from a run's encoder, which reads them as the run read its own data."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.config import EmbedConfig
from dabsmix.data.cache import scratch
from dabsmix.data.domain import Data, Split
from dabsmix.errors import UserError
from dabsmix.files import data_root, write
from dabsmix.modalities import memory
from dabsmix.modalities.packed import is_packed, unpacked
from dabsmix.model.encoder import Encoder, build_encoder
from dabsmix.registry import domain
from dabsmix.run import Run
from dabsmix.source import READS_FILES, Modality, Source, load, state_of_further
from dabsmix.spec import Spec

__all__ = ["FeatureExtractor", "embed", "load_encoder"]

BATCH = 256
"""Examples that are encoded at a time."""

NUMBERS = 1 << 22
"""Numbers of features that are in memory at once when they are written to a file. They are also a row group of a
Parquet file, whose metadata grow with the number of row groups."""

Pooling = Literal["mean", "cls"]


def load_encoder(run: Run | str | Path) -> FeatureExtractor:
    """A finished run's encoder with its input spec and preprocessing.

    Neither the algorithm's code nor the raw data of the run are needed.

    Args:
        run: the run, its folder, or ``"hub:ORG/NAME"`` for one that was exported to the Hugging Face hub.

    Raises:
        UserError: it is not a run, it is unfinished, or its encoder is damaged.
    """
    if isinstance(run, str) and run.startswith("hub:"):
        from dabsmix.verbs.hub import downloaded

        run = downloaded(run.removeprefix("hub:"))
    run = run if isinstance(run, Run) else Run(Path(run).expanduser())
    root = run.data_root
    state = run.record.data_state if root is None else {**run.record.data_state, "data_root": str(root)}
    return FeatureExtractor(run.encoder(), run.modality, state, lambda: _domain_normaliser(run))


class FeatureExtractor:
    """A frozen encoder that takes a user's raw examples: it prepares and normalises them itself.

    Args:
        module: the encoder; put in eval mode.
        modality: image, spectrogram, sensor, tabular, text or sequence; several inputs are joined with ``+``.
        state: what the reader of the modality needs; see ``Data.state``.
        normaliser: returns the normaliser of the training data, for a state without it.

    Attributes:
        module: the `Encoder`, to train further or to read tokens from; its inputs are normalised tensors.
    """

    def __init__(
        self,
        module: Encoder,
        modality: str,
        state: Mapping[str, Any],
        normaliser: Callable[[], Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]] | None = None,
    ) -> None:
        self.module = module.to(PartialState().device).eval()
        self.modality = modality
        self.state = state
        self._normaliser = normaliser

    def __getstate__(self) -> dict[str, Any]:
        """Plain values, so that an extractor can be pickled and copied; its access to a domain's data is lost."""
        weights = {name: value.cpu() for name, value in self.module.state_dict().items()}
        return {
            "encoder": (self.module.specs, self.module.config, weights),
            "modality": self.modality,
            "state": dict(self.state),
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        specs, config, weights = state["encoder"]
        module = build_encoder(specs, config)
        module.load_state_dict(weights)
        self.__init__(module, state["modality"], state["state"])  # type: ignore[misc]  # what pickle did not call

    @property
    def specs(self) -> tuple[Spec, ...]:
        """The inputs that the encoder reads, one spec per input."""
        return self.module.specs

    @property
    def width(self) -> int:
        """The length of a feature, D."""
        return self.module.width

    def features(self, x: Any, *, pooling: Pooling = "mean", batch_size: int = BATCH) -> NDArray[np.float32]:
        """One feature per example, float32 ``(n, D)``. A large array lies in a file, see `dabsmix.data.cache.scratch`.

        Args:
            x: examples of the run's modality: arrays or tensors (a tuple of them for several inputs), a DataFrame, PIL
                images, strings, or paths of files. Arrays are images ``(n, height, width)``, with 3 channels also
                first or last; windows of sensors ``(n, channels, length)``; waves of sounds ``(n, samples)`` at the
                run's rate, floats from -1 to 1 or int16, int32 or uint8 as in WAV files; rows of a table
                ``(n, columns)``; ids of tokens ``(n, length)``.
            pooling: the mean over tokens, or CLS.
            batch_size: examples per pass; changes nothing but float rounding.

        Raises:
            UserError: the examples cannot be read.
        """
        data, _ = self.read(x)
        parts = list(self._encoded(data, pooling, batch_size, len(data.pretrain)))
        return parts[0]

    def read(
        self, x: Any, on_bad: Literal["error", "skip"] = "error", options: Path | None = None
    ) -> tuple[Data, Sequence[str]]:
        """The examples as the encoder reads them, and the key of each: its file's name or its row.

        Args:
            x: see `features`.
            on_bad: ``skip`` leaves out unreadable examples of files.
            options: YAML that says how files are written, where not as the run's own; see `source.WRITTEN`.

        Raises:
            UserError: the examples cannot be read.
        """
        if isinstance(x, Path) or (isinstance(x, str) and self.modality not in ("text", "sequence")):
            path = Path(x).expanduser()
            if path.suffix != ".npy":
                return self._files(path, on_bad, options)
            array = _array_file(path)
            try:
                return self.read(array)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        data = memory.further(x, self.modality, self.specs, self.state) or self._as_stored(x)
        return data, _RowNumbers(len(data.pretrain))

    def _files(self, path: Path, on_bad: Literal["error", "skip"], options: Path | None) -> tuple[Data, Sequence[str]]:
        packed = is_packed(path, self.modality)
        if not packed and not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if READS_FILES.get(self.modality) not in self.state:
            shapes = " and ".join(memory.shape_of(spec)[1] for spec in self.specs)
            raise UserError(f"{path}: this encoder reads no files of examples, only {shapes}; give it as a .npy file")
        state = state_of_further(self.state, Source(modality=cast(Modality, self.modality), options=options))
        if packed:
            path = unpacked(path, self.modality, self.state).path
        reader = importlib.import_module(f"dabsmix.modalities.{self.modality}")
        data, keys = reader.load_further(path, state, on_bad)
        if data.specs != self.specs:
            raise UserError(f"{path} is read as {data.specs}, and the encoder reads {self.specs}")
        return data, keys

    def _as_stored(self, x: Any) -> Data:
        """Arrays in the domain's own stored form, normalised as the domain normalises them."""
        if self._normaliser is None:
            raise UserError("it is not known how to normalise these examples: load the encoder from its run's folder")
        inputs = x if isinstance(x, tuple) else (x,)
        if len(inputs) != len(self.specs):
            raise UserError(f"{len(inputs)} inputs; the encoder reads {len(self.specs)}: give a tuple, one array each")
        stores = tuple(memory.stored(array, spec) for array, spec in zip(inputs, self.specs, strict=True))
        rows = np.arange(len(stores[0]))
        if any(len(store) != len(rows) for store in stores):
            raise UserError(
                f"inputs of {', '.join(str(len(store)) for store in stores)} examples: give the same number of each"
            )
        return Data(self.specs, Split(stores, rows), None, fingerprint="", normalise=self._normaliser())

    @torch.no_grad()
    def _encoded(self, data: Data, pooling: Pooling, batch_size: int, chunk: int) -> Iterator[NDArray[np.float32]]:
        """Features in the order of the examples, at most ``chunk`` of them at a time."""
        device = next(self.module.parameters()).device
        for first in range(0, len(data.pretrain), chunk):
            index = np.arange(first, min(first + chunk, len(data.pretrain)))
            features = scratch((len(index), self.width))
            for start in range(0, len(index), batch_size):
                part = index[start : start + batch_size]
                inputs = data.normalise(tuple(array.to(device) for array in data.pretrain.batch(part)))
                features[start : start + len(part)] = getattr(self.module(inputs), pooling).float().cpu().numpy()
            yield features


def embed(config: EmbedConfig, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Write one row per example, with its key and its feature, in the format of the file's suffix.

    A ``.parquet`` or ``.csv`` file has a column ``key`` and D columns ``f0`` ...; a ``.npz`` file the arrays ``key``
    ``(n,)`` and ``features`` ``(n, D)``. Features are float32, and a bounded number of them is in memory at a time.

    Raises:
        UserError: the run is not a finished run; unreadable input; an output of another format.
    """
    config.check()
    extractor = load_encoder(config.run)
    data, keys = extractor.read(config.input, config.on_bad, config.options)
    for note in data.notes:
        say(note)
    chunk = BATCH * max(1, NUMBERS // (BATCH * extractor.width))
    parts = extractor._encoded(data, config.pooling, BATCH, chunk)
    write(config.out, lambda path: WRITERS[config.out.suffix](path, keys, parts, extractor.width))
    return config.out


@dataclass(frozen=True)
class _RowNumbers(Sequence[str]):
    """``0``, ``1``, ... as texts, made on demand."""

    number: int

    def __len__(self) -> int:
        return self.number

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        rows = range(self.number)[place]
        return str(rows) if isinstance(rows, int) else list(map(str, rows))


# --- the formats of a file of features


def _columns(width: int) -> list[str]:
    return [f"f{j}" for j in range(width)]


def _write_parquet(path: Path, keys: Sequence[str], parts: Iterator[NDArray[np.float32]], width: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    schema = pa.schema([("key", pa.string()), *((name, pa.float32()) for name in _columns(width))])
    # features hardly repeat, and statistics of every column of every row group would stay in memory to the end
    with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=False, write_statistics=False) as file:
        start = 0
        for part in parts:
            arrays = [pa.array(keys[start : start + len(part)], pa.string()), *map(pa.array, part.T)]
            file.write_table(pa.table(arrays, schema=schema))
            start += len(part)


def _write_csv(path: Path, keys: Sequence[str], parts: Iterator[NDArray[np.float32]], width: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", *_columns(width)])
        start = 0
        for part in parts:
            # the shortest text that is read as the same float32
            writer.writerows(
                [key, *map(str, row)] for key, row in zip(keys[start : start + len(part)], part, strict=True)
            )
            start += len(part)


def _write_npz(path: Path, keys: Sequence[str], parts: Iterator[NDArray[np.float32]], width: int) -> None:
    rows = range(0, len(keys), max(1, NUMBERS // width))
    longest = max(len(key) for start in rows for key in keys[start : start + rows.step])
    names, features = scratch((len(keys),), f"U{max(1, longest)}"), scratch((len(keys), width))
    start = 0
    for part in parts:
        names[start : start + len(part)] = keys[start : start + len(part)]
        features[start : start + len(part)] = part
        start += len(part)
    with path.open("wb") as file:
        np.savez(file, key=names, features=features)


WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}


# --- pieces


def _domain_normaliser(run: Run) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """How a named domain normalises, from its data, for runs that do not record it."""
    source = Source.from_plain(run.config)
    card = None if source.domain is None else domain(source.domain)
    if card is None or (card.folder and card.present(data_root(source.data_root)) is None):
        raise UserError(
            f"{run.path} does not say how examples of {run.record.domain} are normalised, and its data are not under "
            f"{data_root(source.data_root)}: set $DABSMIX_DATA to where they are, or pretrain again"
        )
    return load(source).normalise


def _array_file(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an array ({error})") from error
    return array
