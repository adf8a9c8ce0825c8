"""Pretrain and transfer on the real files of every modality, with the tiny encoder and a few steps."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from dabsmix.config import PretrainConfig, TransferConfig
from dabsmix.registry import domain
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.results import prediction_key, read_transfer
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain
from dabsmix.verbs.transfer import transfer

pytestmark = pytest.mark.slow

STEPS, BATCH = 20, 16

CASES = [  # pretraining data, transfer task, settings
    ("cifar10", "cifar10", "imix_npair"),
    ("traffic_sign", "traffic_sign", "shed"),
    ("dtd", "dtd", "emix"),
    ("fsdd", "fsdd", "dmix"),
    ("speech_commands", "speech_commands", "contpred"),
    ("uci_har", "uci_har", "dmix"),
    ("covtype", "covtype", "emix"),
    ("higgs", "higgs", "imix_moco"),
    ("wikitext2_valid", "rte", "contdmix"),
    ("mscoco", "mscoco", "dmix"),
    ("mscoco", "mismatched_caption", "emix"),
]


@pytest.mark.parametrize(("source", "task", "algo"), CASES, ids=lambda part: part)
def test_from_raw_files_to_a_score(source: str, task: str, algo: str, tmp_path: Path) -> None:
    root = Path(os.environ.get("DABSMIX_DATA", "no such folder"))
    for name in (source, task):
        if domain(name).present(root) is None:
            pytest.skip(f"{domain(name).folder} is not under $DABSMIX_DATA")
    accelerator = accelerate()
    config = PretrainConfig(
        Source(source, data_root=root), algo=algo, encoder="tiny", steps=STEPS, batch_size=BATCH, out=tmp_path
    )
    run = pretrain(config, accelerator=accelerator)
    assert run.finished
    assert run.record.data_fingerprint
    last = run.metrics()[-1]
    assert last["step"] == STEPS
    assert all(np.isfinite(value) for value in last.values())
    weights = load_file(run.path / "encoder.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())

    transfer_config = TransferConfig(run=(run.path,), task=(task,), labels=("1",), data_root=root)
    if task == "covtype":  # v2's linear probe takes minutes on its 10,802 rows
        transfer_config = replace(transfer_config, protocol="v1")
    (record,) = transfer(transfer_config, accelerator=accelerator)
    data = domain(task).load(domain(task).present(root) or root, "v1")
    labelled = data.require_labelled()
    assert labelled.test.label is not None
    label = labelled.test.label
    file = run.path / "transfer" / ("covtype-v1.json" if task == "covtype" else f"{task}.json")
    assert record == read_transfer(file)
    assert (record.headline.metric, record.headline.n, record.test_reads) == (
        labelled.task.metric,
        len(labelled.test),
        1,
    )
    assert record.yardsticks.keys() >= {"raw", "majority"}
    with np.load(file.with_suffix(".predictions.npz")) as predictions:
        assert np.array_equal(predictions["label"], label)
        for result in record.results:
            assert result.low is not None
            assert result.high is not None
            assert result.low <= result.value <= result.high
            predicted = predictions[prediction_key(result.probe, "1")][0]
            classes = labelled.task.kind == "classes"
            score = (predicted == label).mean() if classes else metric(labelled.task.metric)(predicted, label)
            assert result.value == pytest.approx(score)
