"""`dabsmix embed`: every run's encoder on files and arrays, in three formats, streamed, with mistakes reported."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from peak import MEASURED, Peak
from upstream_text import write_bert_vocab, write_glue

from dabsmix.cli import main
from dabsmix.config import EmbedConfig, PretrainConfig, TransferConfig
from dabsmix.data import cache
from dabsmix.errors import UserError
from dabsmix.run import Run
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs import embed as module
from dabsmix.verbs.embed import embed, load_encoder
from dabsmix.verbs.pretrain import pretrain
from dabsmix.verbs.transfer import transfer


def pretrained(source: Source, out: Path) -> Run:
    config = PretrainConfig(source, algo="none", encoder="tiny", batch_size=8, out=out)
    return pretrain(config, accelerator=accelerate())


def table(path: Path, rows: int = 50) -> Path:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=rows), "kind": rng.choice(["a", "b"], rows)})
    frame.to_csv(path, index=False)
    return path


def read(path: Path) -> tuple[list[str], Any]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return list(arrays["key"]), arrays["features"]
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"key": str})
    assert list(frame.columns) == ["key", *(f"f{j}" for j in range(64))]
    return list(frame["key"]), frame.drop(columns="key").to_numpy(np.float32)


def test_each_suffix_gives_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 7)
    monkeypatch.setattr(module, "NUMBERS", 1)  # several parts
    data = table(tmp_path / "t.csv")
    run = pretrained(Source(data=data, modality="tabular"), tmp_path)
    expected = load_encoder(run).features(data)
    for suffix in (".parquet", ".csv", ".npz"):
        out = embed(EmbedConfig(run.path, data, tmp_path / f"features{suffix}"))
        keys, features = read(out)
        assert keys == [f"t.csv:{row}" for row in range(2, 52)]
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected, atol=1e-6)
    assert not list(tmp_path.glob(".*"))  # no incomplete file is left
    with pytest.raises(UserError, match=r"features\.xlsx: its name must end in one of \.parquet, \.csv, \.npz"):
        embed(EmbedConfig(run.path, data, tmp_path / "features.xlsx"))


def test_a_named_domain_s_run_reads_arrays(tmp_path: Path) -> None:
    run = pretrained(Source("digits"), tmp_path)
    images = np.random.default_rng(0).random((9, 8, 8), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    out = embed(EmbedConfig(run.path, tmp_path / "images.npy", tmp_path / "f.parquet", pooling="cls"))
    keys, features = read(out)
    assert keys == [str(row) for row in range(9)]
    np.testing.assert_allclose(features, load_encoder(run).features(images, pooling="cls"), atol=1e-6)
    form = r"an array \(n, 1, 8, 8\), which is \(n, channels, height, width\)"
    with pytest.raises(
        UserError, match=f"this encoder reads no files of examples, only {form}; give it as a .npy file"
    ):
        embed(EmbedConfig(run.path, tmp_path, tmp_path / "g.parquet"))
    np.save(tmp_path / "small.npy", images[:, :4])
    with pytest.raises(UserError, match=rf"small\.npy: examples of shape \(9, 4, 8\): the encoder reads {form}; bring"):
        embed(EmbedConfig(run.path, tmp_path / "small.npy", tmp_path / "g.parquet"))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"broken\.npy: cannot be read as an array"):
        embed(EmbedConfig(run.path, tmp_path / "broken.npy", tmp_path / "g.parquet"))
    assert not (tmp_path / "g.parquet").exists()


def test_a_text_domain_s_tokenizer_is_read_from_the_data_root_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bert_vocab(tmp_path / "root")
    write_glue(tmp_path / "root", "SST-2")
    monkeypatch.setenv("DABSMIX_DATA", str(tmp_path / "elsewhere"))
    run = pretrained(Source("sst2", data_root=tmp_path / "root"), tmp_path)
    assert load_encoder(run).features(["bright river", "stone"]).shape == (2, 64)
    more = tmp_path / "more.csv"
    more.write_text("text,mood\n" + "bright river,good\nquiet stone,bad\n" * 10)
    keys, features = read(embed(EmbedConfig(run.path, more, tmp_path / "f.csv")))
    assert len(keys) == len(features) == 20
    record = transfer(
        TransferConfig(run=(run.path,), data=(more,), label=("mood",), labels=("1",)),
        accelerator=accelerate(),
        answer=False,
    )[0]
    assert record.task == "more-mood"
    write_bert_vocab(tmp_path / "moved")
    (tmp_path / "root" / "bert-base-uncased").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="bert-base-uncased"):
        load_encoder(run).features(["bright river"])
    monkeypatch.setenv("DABSMIX_DATA", str(tmp_path / "moved"))
    assert load_encoder(run).features(["bright river"]).shape == (1, 64)


def test_embed_reports_bad_rows_like_pretrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrained(Source(data=table(tmp_path / "t.csv"), modality="tabular"), tmp_path)
    more = tmp_path / "more.csv"
    more.write_text("size,kind\n1.5,a\nbig,a\n2.5,c\n")

    def call(*words: object) -> tuple[int, str]:
        line = ["dabsmix", "embed", "--run", run.path, "--input", more, "--out", tmp_path / "f.csv", *words]
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    status, err = call()
    assert status == 2
    assert "more.csv: row 3: column 'size' holds 'big' among numbers" in err
    assert "--on-bad skip" in err
    status, err = call("--on-bad", "skip")
    assert status == 0, err
    assert "1 cell holds a category that no training row has" in err
    assert "1 of 3 rows was skipped: more.csv: row 3" in err
    assert read(tmp_path / "f.csv")[0] == ["more.csv:2", "more.csv:4"]


def test_embed_asks_first_whether_its_file_can_be_written(tmp_path: Path) -> None:
    run = pretrained(Source(data=table(tmp_path / "t.csv"), modality="tabular"), tmp_path)
    (tmp_path / "f.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*f\.csv: it is a folder"):
        EmbedConfig(run.path, tmp_path / "t.csv", tmp_path / "f.csv").check()
    EmbedConfig(run.path, tmp_path / "t.csv", tmp_path / "new" / "f.csv").check()
    assert not (tmp_path / "new").exists()


def test_further_files_may_be_written_in_another_way(tmp_path: Path) -> None:
    rows = [f"{row / 8},{'ü' if row % 2 else 'é'}\n" for row in range(40)]
    (tmp_path / "t.csv").write_text("size,kind\n" + "".join(rows))
    run = pretrained(Source(data=tmp_path / "t.csv", modality="tabular"), tmp_path)
    expected = read(embed(EmbedConfig(run.path, tmp_path / "t.csv", tmp_path / "f.csv")))[1]
    others = "".join(row.replace(",", ";").replace(".", ",") for row in rows)
    (tmp_path / "other.csv").write_bytes(("size;kind\n" + others).encode("latin-1"))
    options = tmp_path / "o.yaml"

    def go(text: str, data: str = "other.csv") -> Path:
        options.write_text(text)
        return embed(EmbedConfig(run.path, tmp_path / data, tmp_path / "f.csv", options=options))

    with pytest.raises(UserError, match=r"as `encoding: latin-1` in the file that --options names"):
        embed(EmbedConfig(run.path, tmp_path / "other.csv", tmp_path / "f.csv"))
    np.testing.assert_array_equal(read(go('encoding: latin-1\ndecimal: ","\n'))[1], expected)
    with pytest.raises(UserError, match=r"unknown option 'window'; tabular data take: separator, decimal, encoding$"):
        go("window: 3")
    with pytest.raises(UserError, match=r"encoding is 3, not text"):
        go("encoding: 3")
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    with pytest.raises(UserError, match=r"x\.npy is one array; leave the flag out"):
        go("encoding: latin-1", "x.npy")


def test_an_encoder_that_is_not_the_run_s_is_refused(tmp_path: Path) -> None:
    run = pretrained(Source("digits"), tmp_path)
    with (run.path / "encoder.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(UserError, match="is not the encoder that this run ended with"):
        load_encoder(run.path)
    run.update(status="running")
    with pytest.raises(UserError, match="is unfinished"):
        load_encoder(run.path)


@MEASURED
@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_memory_does_not_grow_with_the_rows_of_a_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "IN_MEMORY", 1 << 18)
    rows, width, at_once = 400_000, 64, 2_000  # numpy writes an archive through a buffer of 16 MiB

    def write(n: int) -> None:
        parts = (np.full((at_once, width), start, np.float32) for start in range(0, n, at_once))
        module.WRITERS[suffix](tmp_path / f"{n}{suffix}", module._RowNumbers(n), parts, width)

    write(at_once)  # what is imported and allocated once
    with Peak() as peak:
        write(rows)
    keys, features = read(tmp_path / f"{rows}{suffix}")
    assert (len(keys), keys[-1], features[-1, -1]) == (rows, str(rows - 1), rows - at_once)
    assert peak.growth < rows * width * 4 / 4
