"""A run's encoder for other programs: a torch program, an ONNX graph, or a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dabsmix
from dabsmix.config import ExportConfig
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.files import write
from dabsmix.modalities.columns import Column
from dabsmix.model.encoder import Encoder
from dabsmix.run import Run, finished_runs
from dabsmix.spec import Grid, PaddedGrid, Spec, Table, Tokens
from dabsmix.verbs.hub import published

__all__ = ["export"]

TOLERANCE = 1e-4
"""The largest allowed difference between a feature of the exported program and that of the encoder."""


def export(config: ExportConfig, *, say: Callable[[str], None] = lambda _: None) -> str:
    """Write a run's encoder in a format for other programs, checked against the encoder itself.

    ``torch`` is a `torch.export` program, ``encoder.pt2``; ``onnx`` is ``encoder.onnx``. Both take any number of raw
    examples, as the run's data are stored, standardise them, and return the features ``mean`` and ``cls``;
    ``encoder.json`` beside them describes the inputs. A table's categories are numbers: their places in the lists that
    it holds. ``hub`` is the folder of a repository with a model card, and
    ``hub:ORG/NAME`` uploads it.

    Returns:
        The file, the folder, or the address of the repository.

    Raises:
        UserError: the run is unfinished; a package is missing; the hub refuses; the features differ.
    """
    (run,) = finished_runs([config.run] if config.run is not None else [], config.runs)
    kind, repository = config.target()
    encoder = run.encoder()
    folder = config.out or run.path / "export"
    if kind == "hub":
        return published(run, repository, folder / "hub", config.licence, say)
    program = Standalone(encoder, run)
    path = folder / ("encoder.pt2" if kind == "torch" else "encoder.onnx")
    save, outputs = (_save_torch, _torch_outputs) if kind == "torch" else (_save_onnx, _onnx_outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn about their own internals
        write(path, lambda to: save(program, to))
        difference = _difference(program, lambda inputs: outputs(path, inputs))
    if not difference <= TOLERANCE:
        path.unlink()
        raise UserError(f"{path}: its features differ from the encoder's by {difference:g}; please report this")
    description = _description(run, encoder, program, path.name, difference)
    write(folder / "encoder.json", lambda to: to.write_text(json.dumps(description, indent=1), encoding="utf-8"))
    say(f"checked: its features differ from the encoder's by at most {difference:.1g}")
    return str(path)


class Standalone(nn.Module):
    """Raw inputs to features ``mean`` and ``cls``, each ``(B, D)``: the run's standardisation and its encoder.

    Attributes:
        standardises: whether the inputs are raw. If a run does not state how it standardises, the inputs have to be
            normalised as its domain does.
    """

    def __init__(self, encoder: Encoder, run: Run) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        state = run.record.data_state
        mean, std = state.get("mean"), state.get("std")
        self.standardises = mean is not None and std is not None
        if self.standardises:
            (first, *_) = _examples(encoder, 1)
            statistics = Standardise(_numbers(mean), _numbers(std)).by_channel(first)
            self.mean, self.std = (nn.Buffer(torch.as_tensor(statistic)) for statistic in statistics)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the inputs, whose first axis is the examples."""
        if self.standardises and inputs[0].is_floating_point():
            inputs = (inputs[0] - self.mean) / self.std, *inputs[1:]
        pooled = self.encoder(inputs)
        return pooled.mean, pooled.cls


def _numbers(values: Any) -> tuple[float, ...] | float:
    return tuple(float(value) for value in values) if isinstance(values, list | tuple) else float(values)


# --- the two kinds of program


def _examples(encoder: Encoder, count: int) -> tuple[Tensor, ...]:
    """Random inputs of the right shape."""
    draws = torch.Generator().manual_seed(count)

    def one(spec: Spec) -> Tensor:
        match spec:
            case PaddedGrid():
                readings = torch.rand(count, spec.channels, *spec.size, generator=draws)
                readings[::2, :, spec.size[0] // 2 :] = torch.nan  # half of a recording is padding
                return readings
            case Grid():
                return torch.rand(count, spec.channels, *spec.size, generator=draws)
            case Tokens():
                return torch.randint(spec.vocab, (count, spec.length), generator=draws)
            case Table():
                values = torch.rand(count, spec.num_features, generator=draws)
                sizes = torch.tensor(spec.cardinalities)
                cells = torch.where(sizes > 0, (values * sizes).floor(), values)
                cells[::2, 0] = torch.nan  # an empty cell, or a category that is not in the list
                return cells

    return tuple(one(spec) for spec in encoder.specs)


def _exported(program: Standalone) -> Any:
    inputs = _examples(program.encoder, 2)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(program, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))


def _save_torch(program: Standalone, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "encoder.pt2"  # torch requires this suffix
        torch.export.save(_exported(program), temporary)
        shutil.copyfile(temporary, path)


def _save_onnx(program: Standalone, path: Path) -> None:
    torch.onnx.export(
        _exported(program),
        _examples(program.encoder, 2),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=_names(program),
        output_names=["mean", "cls"],
    )


def _names(program: Standalone) -> list[str]:
    specs = program.encoder.specs
    return ["input"] if len(specs) == 1 else [f"input{number}" for number in range(len(specs))]


def _torch_outputs(path: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return list(torch.export.load(path).module()(*inputs))


def _onnx_outputs(path: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    named = {node.name: value.numpy() for node, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(["mean", "cls"], named)]


@torch.no_grad()
def _difference(program: Standalone, outputs: Callable[[tuple[Tensor, ...]], list[Tensor]]) -> float:
    """The largest difference between features, for a different number of examples than in the export."""
    inputs = _examples(program.encoder, 5)
    return max(
        float((ours - theirs).abs().max()) for ours, theirs in zip(program(*inputs), outputs(inputs), strict=True)
    )


def _description(run: Run, encoder: Encoder, program: Standalone, file: str, difference: float) -> dict[str, Any]:
    """What a user of the file has to know."""
    record = run.record
    columns = [Column.from_plain(values) for values in record.data_state.get("columns", ())]
    raw = "raw, as stored"
    if any(isinstance(spec, PaddedGrid) for spec in encoder.specs):
        raw += ", NaN where nothing was read"
    if columns:
        # not as stored: stored codes count the categories of all rows, the encoder's those of the training rows
        raw = (
            "raw, the columns in the order of `columns`: a number as it is, a date as days since 1970-01-01 UTC, a "
            "category as its index from 0 in the column's `categories`; NaN if the cell is empty or its category is "
            "not in that list"
        )
    inputs = [
        {
            "name": name,
            "shape": ["batch", *example.shape[1:]],
            "dtype": "int64" if isinstance(spec, Tokens) else "float32",
        }
        for name, spec, example in zip(_names(program), encoder.specs, _examples(encoder, 1), strict=True)
    ]
    return {
        "file": file,
        "inputs": inputs,
        "inputs_are": raw if program.standardises else f"normalised as {record.domain} is",
        **({"columns": [_column(column) for column in columns]} if columns else {}),
        "outputs": {"mean": ["batch", encoder.width], "cls": ["batch", encoder.width]},
        "run": record.name,
        "data": record.domain,
        "modality": record.modality,
        "algorithm": record.algorithm,
        "encoder": record.encoder,
        "encoder_sha256": record.encoder_sha256,
        "largest_difference": difference,
        "dabsmix": dabsmix.__version__,
    }


def _column(column: Column) -> dict[str, Any]:
    """A column of a table: its name, and its categories in the order of the encoder's codes."""
    if column.categories is not None:
        return {"name": column.name, "kind": "category", "categories": column.categories}
    return {"name": column.name, "kind": "date" if column.dates else "number"}
