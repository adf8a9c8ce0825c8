"""Shared by the tests of runs: the record of a run, as pretrain would write it."""

from dataclasses import replace
from typing import Any

from dabsmix.run import RunRecord

RECORD = RunRecord(
    status="running",
    domain="digits",
    algorithm="emix",
    hyper={},
    views="identical",
    uses_labels=False,
    encoder="tiny",
    parameters=1000,
    protocol="v1",
    seed=0,
    steps=3,
    batch_size=16,
    config_hash="c" * 12,
    data_fingerprint="d" * 64,
    version="0.1.0",
)


def run_record(**changes: Any) -> RunRecord:
    return replace(RECORD, **changes)
