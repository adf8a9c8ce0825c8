"""`dabsmix embed`: a run's encoder on further files of the user's own, features keyed by file name or row."""

from __future__ import annotations

import importlib
from pathlib import Path

from accelerate import Accelerator

from dabsmix.config import EmbedConfig
from dabsmix.errors import UserError
from dabsmix.files import write
from dabsmix.model.checkpoint import load_encoder
from dabsmix.run import Run
from dabsmix.scoring.features import features

__all__ = ["embed"]


def embed(config: EmbedConfig, *, accelerator: Accelerator) -> Path:
    """Write one row per example: ``key`` and the feature's D columns ``f0`` ... as float32 Parquet.

    Raises:
        UserError: the run is no run, is unfinished or was pretrained on a named domain; unreadable input.
    """
    import pandas as pd

    run = Run(config.run)
    modality = run.record.own_data
    if not run.finished:
        raise UserError(f"{run.path} is unfinished: go on with `dabsmix pretrain --resume`")
    if not modality:
        raise UserError(
            f"{run.path} was pretrained on the domain {run.record.domain}: embed takes runs pretrained with --data"
        )
    if not config.input.exists():
        raise UserError(f"--input {config.input}: no such file or folder")
    reader = importlib.import_module(f"dabsmix.modalities.{modality}")
    data, keys = reader.own_rows(config.input, run.record.data_state)
    encoder = load_encoder(run.encoder_file(), data.specs)
    pooled = features(encoder.to(accelerator.device), data.pretrain, data.normalise, accelerator=accelerator)
    values = pooled.mean if config.pooling == "mean" else pooled.cls
    table = pd.DataFrame(values.numpy(), columns=[f"f{i}" for i in range(values.shape[1])])
    table.insert(0, "key", keys)
    write(config.out, lambda path: table.to_parquet(path, index=False))
    return config.out
