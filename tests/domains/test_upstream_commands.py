"""Data sets of DABS 2.0 and i-Mix by command: a damaged file is one line; twenty steps are pretrained and scored.

tests/domains/test_domains_sequence.py pretrains and scores proteins, DNA and wafers.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import upstream
import upstream_image
import upstream_sequence
import upstream_speech
import upstream_tabular

from dabsmix.cli import main
from dabsmix.domains.speech_commands import COMMANDS
from dabsmix.registry import domain

WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pfam": (lambda root: upstream_sequence.write_tape(root, "pfam"), "pfam_train.json"),
    "scop": (lambda root: upstream_sequence.write_tape(root, "remote_homology"), "remote_homology_train.json"),
    "secondary_struct": (
        lambda root: upstream_sequence.write_tape(root, "secondary_structure"),
        "secondary_structure_valid.json",
    ),
    "stability": (lambda root: upstream_sequence.write_tape(root, "stability"), "stability_train.json"),
    "fluorescence": (lambda root: upstream_sequence.write_tape(root, "fluorescence"), "fluorescence_test.json"),
    "genomics": (upstream_sequence.write_genomics, "before_2011_in_tr.tsv"),
    "wafer": (upstream_sequence.write_wafers, "WM811K.mat"),
    "pamap2_spectrogram": (
        lambda root: upstream.write_pamap2(root, subjects=(1, 2, 5), bout_seconds=11),
        "subject102.dat",
    ),
    "eurosat_transfer": (lambda root: upstream_image.write_eurosat(root, multispectral=True), "Forest/Forest_3.tif"),
    "google_speech": (
        lambda root: upstream_speech.write_speech_commands(root, "v0.02", ["yes", "no", "cat"]),
        "yes/*_nohash_0.wav",
    ),
    "speech_commands_12_32": (
        lambda root: upstream_speech.write_speech_commands(root, "v0.01", (*COMMANDS, "cat"), noise=[10]),
        "yes/*_nohash_0.wav",
    ),
    "higgs_100k": (lambda root: upstream_tabular.write_higgs(root / "higgs" / "HIGGS.csv"), "HIGGS.csv"),
    "higgs_1m": (lambda root: upstream_tabular.write_higgs(root / "higgs" / "HIGGS.csv"), "HIGGS.csv"),
}
SCORED = ["pamap2_spectrogram", "eurosat_transfer", "google_speech", "speech_commands_12_32", "higgs_100k", "higgs_1m"]


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dabsmix", *words])
    main()


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, file = WRITERS[name]
    write(tmp_path)
    path = next((tmp_path / domain(name).folder).glob(file))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1])
    with pytest.raises(SystemExit) as stopped:
        command(
            monkeypatch,
            *("pretrain", "--domain", name, "--algo", "dmix", "--encoder", "tiny", "--steps", "20"),
            *("--data-root", str(tmp_path), "--out", str(tmp_path / "runs")),
        )
    assert stopped.value.code == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dabsmix: ")]
    assert path.name in message
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORED)
def test_twenty_steps_are_pretrained_and_scored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[name][0](tmp_path)
    common = ["--data-root", str(tmp_path), "--out", str(tmp_path / "runs")]
    options = ["--encoder", "tiny", "--steps", "20", "--batch-size", "8"]
    command(monkeypatch, "pretrain", "--domain", name, "--algo", "dmix", *options, *common)
    command(monkeypatch, "transfer", "--labels", "1", *common)
    (path,) = (tmp_path / "runs" / f"{domain(name).name}-dmix-s0" / "transfer").glob("*.json")
    assert json.loads(path.read_text())["results"]
