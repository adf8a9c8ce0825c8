"""Text domains against upstream-format files: real ones where $DABSMIX_DATA has them, generated ones otherwise."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import upstream_text as upstream
from numpy.typing import NDArray

from dabsmix.data.domain import Data, Split
from dabsmix.domains.glue import TABLES
from dabsmix.domains.mc4 import SHARDS
from dabsmix.domains.paws_x import LANGUAGES
from dabsmix.errors import UserError
from dabsmix.modalities.text import BERT, XLM_ROBERTA, tokenizer
from dabsmix.registry import domain
from dabsmix.spec import Tokens
from dabsmix.testing import check_domain


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def real(folder: str) -> Path:
    root = os.environ.get("DABSMIX_DATA")
    if not root or not (Path(root) / folder).exists():
        pytest.skip(f"no real {folder}: $DABSMIX_DATA does not have it")
    return Path(root) / folder


def load(root: Path, name: str, protocol: str = "v1") -> Data:
    card = domain(name)
    if protocol == "dabs":  # whose validation part is the test part: the contract of v1 does not hold
        return card.load(root / card.folder, protocol)
    return check_domain(card, root / card.folder)


def stored(split: Split) -> NDArray[Any]:
    return np.asarray(split.inputs[0][split.rows])


def labels(split: Split) -> NDArray[Any]:
    assert split.label is not None
    return split.label


# --- GLUE


def plain_rows(folder: Path, name: str, part: str) -> list[tuple[list[str], str]]:
    """Texts and label of every row, as one would read the file by hand."""
    columns = {
        "CoLA": (None, [3], 1),
        "SST-2": (1, [0], 1),
        "MRPC": (1, [3, 4], 0),
        "QQP": (1, [3, 4], 5),
        "STS-B": (1, [7, 8], 9),
        "MNLI": (1, [8, 9], 11),
        "QNLI": (1, [1, 2], 3),
        "RTE": (1, [1, 2], 3),
        "WNLI": (1, [1, 2], 3),
    }
    header, texts, label = columns[folder.name]
    file = "train.tsv" if part == "train" else TABLES[name].dev
    lines = (folder / file).read_text(encoding="utf-8").split("\n")[1 if header else 0 : -1]
    return [([line.split("\t")[i].strip() for i in texts], line.split("\t")[label]) for line in lines]


@pytest.mark.parametrize("name", TABLES)
def test_glue_rows_are_the_files_rows(tmp_path: Path, name: str) -> None:
    upstream.write_bert_vocab(tmp_path)
    folder = upstream.write_glue(tmp_path, TABLES[name].folder)
    data = load(tmp_path, name, "dabs")
    tokens = tokenizer(BERT, tmp_path)
    assert data.specs == (Tokens(128, tokens.vocab, tokens.pad),)
    labelled = data.require_labelled()
    for part, split in (("train", labelled.train), ("test", labelled.test)):
        rows = plain_rows(folder, name, part)
        samples = [text[0] if len(text) == 1 else (text[0], text[1]) for text, _ in rows]
        assert np.array_equal(stored(split), tokens.encode(samples, 128))
        names = upstream.GLUE_LABELS.get(folder.name, ("0", "1"))
        if name == "stsb":
            assert labels(split).tolist() == np.array([value for _, value in rows], np.float32).tolist()
        else:
            assert [names[code] for code in labels(split)] == [value for _, value in rows]


@pytest.mark.parametrize(
    ("name", "kind", "metric", "dabs_metric"),
    [
        ("cola", "classes", "matthews", "pearson/128"),
        ("stsb", "regression", "spearman", "spearman/128"),
        ("mrpc", "classes", "accuracy", "accuracy"),
        ("mnli_mismatched", "classes", "accuracy", "accuracy"),
    ],
)
def test_glue_metrics(tmp_path: Path, name: str, kind: str, metric: str, dabs_metric: str) -> None:
    upstream.write_bert_vocab(tmp_path)
    upstream.write_glue(tmp_path, TABLES[name].folder)
    ours, theirs = (load(tmp_path, name, protocol).require_labelled().task for protocol in ("v1", "dabs"))
    assert (ours.kind, ours.metric, theirs.metric) == (kind, metric, dabs_metric)


def test_v1_carves_validation_from_train_and_keeps_premises_together(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    folder = upstream.write_glue(tmp_path, "RTE")
    data = load(tmp_path, "rte")
    first = [texts[0] for texts, _ in plain_rows(folder, "rte", "train")]
    labelled = data.require_labelled()
    assert data.pretrain is labelled.train
    assert sorted([*labelled.train.rows, *labelled.validation.rows]) == list(range(60))
    assert not {first[row] for row in labelled.train.rows} & {first[row] for row in labelled.validation.rows}
    assert len(labelled.test) == 12


def test_under_dabs_validation_is_the_test_split(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    upstream.write_glue(tmp_path, "SST-2")
    data = load(tmp_path, "sst2", "dabs")
    labelled = data.require_labelled()
    assert labelled.validation is labelled.test
    assert len(data.pretrain) == 60


def test_mrpc_as_first_published_equals_glues_two_files(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    folder = upstream.write_glue(tmp_path, "MRPC")
    expected = load(tmp_path, "mrpc", "dabs")
    (header, *train), (_, *dev) = (
        (folder / f"{part}.tsv").read_text("utf-8").splitlines() for part in ("train", "dev")
    )
    dev = [row.replace("\t1", "\t7", 1).replace("\t2", "\t8", 1) for row in dev]  # other ids than train's
    (folder / "msr_paraphrase_train.txt").write_text("\n".join([header, *dev[:5], *train, *dev[5:]]) + "\n", "utf-8")
    (folder / "mrpc_dev_ids.tsv").write_text("\n".join("\t".join(row.split("\t")[1:3]) for row in dev) + "\n")
    (folder / "train.tsv").unlink()
    data = load(tmp_path, "mrpc", "dabs")
    labelled = data.require_labelled()
    for ours, theirs in (
        (labelled.train, expected.require_labelled().train),
        (labelled.test, expected.require_labelled().test),
    ):
        assert np.array_equal(stored(ours), stored(theirs))
        assert labels(ours).tolist() == labels(theirs).tolist()


def test_copies_of_test_samples_in_train_are_counted(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    folder = upstream.write_glue(tmp_path, "SST-2")
    train, dev = folder / "train.tsv", folder / "dev.tsv"
    train.write_text(train.read_text() + "".join(f"{row}\n" for row in dev.read_text().splitlines()[1:4]))
    assert "3 of 12 test samples occur word for word in upstream's training part." in load(tmp_path, "sst2").notes


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("sst2", "a fine film\t2", "label '2' is not one of 0, 1"),
        ("sst2", "a fine film", "1 cells where the table has 2"),
        ("sst2", " \t1", "no text in sentence"),
        ("rte", "9\ta\tb\tmaybe", "label 'maybe' is not one of entailment, not_entailment"),
        ("stsb", "9\tg\tf\ty\t0\tn\tn\ta\tb\tNaN", "score 'NaN' is not a number"),
        ("stsb", "9\tg\tf\ty\t0\tn\tn\ta\tb\t", "score '' is not a number"),
    ],
)
def test_a_bad_row_names_file_and_row(tmp_path: Path, name: str, row: str, message: str) -> None:
    upstream.write_bert_vocab(tmp_path)
    file = upstream.write_glue(tmp_path, TABLES[name].folder) / "train.tsv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:5], row, *lines[5:]]) + "\n")
    with pytest.raises(UserError, match=f"train.tsv:6: {message}"):
        load(tmp_path, name)


def test_a_class_missing_from_train_is_reported(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    file = upstream.write_glue(tmp_path, "SST-2") / "train.tsv"
    file.write_text("sentence\tlabel\n" + "good\t1\n" * 9)
    with pytest.raises(UserError, match="class 'negative' does not occur in train"):
        load(tmp_path, "sst2")


def test_missing_files_and_tokenizer_are_reported(tmp_path: Path) -> None:
    upstream.write_glue(tmp_path, "SST-2")
    with pytest.raises(UserError, match=r"put it into .*bert-base-uncased"):
        load(tmp_path, "sst2")
    upstream.write_bert_vocab(tmp_path)
    (tmp_path / "glue_data" / "SST-2" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"dev\.tsv"):
        load(tmp_path, "sst2")


def test_another_tokenizer_is_another_data_set(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    upstream.write_glue(tmp_path, "SST-2")
    before = load(tmp_path, "sst2")
    vocab = tmp_path / BERT / "vocab.txt"
    vocab.write_text(vocab.read_text().replace("river", "lake"))
    after = load(tmp_path, "sst2")
    assert before.fingerprint != after.fingerprint
    assert not np.array_equal(stored(before.require_labelled().test), stored(after.require_labelled().test))


@pytest.mark.parametrize(("name", "train", "dev", "positive"), [("sst2", 67349, 872, 37569), ("rte", 2490, 277, 1241)])
def test_real_glue_is_complete(name: str, train: int, dev: int, positive: int) -> None:
    root = real(domain(name).folder).parents[1]
    data = load(root, name, "dabs")
    labelled = data.require_labelled()
    assert (len(data.pretrain), len(labelled.test)) == (train, dev)
    assert int(labels(labelled.train).sum()) == positive
    ours = load(root, name)
    assert len(ours.require_labelled().train) + len(ours.require_labelled().validation) == train


# --- WikiText


def test_wikitext_lines_are_samples(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    folder = upstream.write_wikitext(tmp_path)
    lines = [line.strip() for line in (folder / "wiki.train.tokens").read_text().split("\n") if line.strip()]
    data = load(tmp_path, "wikitext2")
    assert len(lines) == 21
    assert np.array_equal(stored(data.pretrain), tokenizer(BERT, tmp_path).encode(lines, 128))
    assert "None of the 21 samples fills all 128 tokens, so none is cut." in data.notes


def test_wikitext_without_its_training_file_names_the_remedy(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    upstream.write_wikitext(tmp_path, parts=("valid", "test"))
    with pytest.raises(UserError, match="or pretrain on wikitext2_valid"):
        load(tmp_path, "wikitext2")
    assert len(load(tmp_path, "wikitext2_valid").pretrain) == 21


def test_wikitext103_lies_in_its_own_folder(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    upstream.write_wikitext(tmp_path, "103")
    assert len(load(tmp_path, "wikitext103").pretrain) == 21


def test_real_wikitext2() -> None:
    data = load(real("wikitext-2").parent, "wikitext2_valid")
    assert len(data.pretrain) == 2461  # upstream's 3,760 lines without the empty ones


def test_pretraining_on_wikitext_fits_glue(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    upstream.write_wikitext(tmp_path)
    upstream.write_glue(tmp_path, "MNLI")
    card = domain("wikitext2")
    assert set(card.transfers) == set(TABLES)
    assert load(tmp_path, "wikitext2").specs == load(tmp_path, "mnli_matched").specs


# --- PAWS-X and mC4


@pytest.mark.parametrize("language", ["en", "ja"])
def test_paws_x(tmp_path: Path, language: str) -> None:
    upstream.write_xlm_roberta(tmp_path)
    folder = upstream.write_paws_x(tmp_path, language)
    tokens = tokenizer(XLM_ROBERTA, tmp_path)
    for protocol, file, n in (("v1", "test_2k.tsv", 11), ("dabs", "dev_2k.tsv", 10)):
        data = load(tmp_path, f"paws_{language}", protocol)
        rows = [line.split("\t") for line in (folder / file).read_text().splitlines()[1:]]
        assert len(rows) == n
        assert np.array_equal(
            stored(data.require_labelled().test), tokens.encode([(one, two) for _, one, two, _ in rows], 128)
        )
        assert labels(data.require_labelled().test).tolist() == [int(label) for *_, label in rows]
    assert len(LANGUAGES) == 7


def test_paws_x_bad_label(tmp_path: Path) -> None:
    upstream.write_xlm_roberta(tmp_path)
    file = upstream.write_paws_x(tmp_path, "fr") / "translated_train.tsv"
    file.write_text(file.read_text() + "99\ta\tb\t-1\n")
    with pytest.raises(UserError, match=r"translated_train.tsv:42: no text, or a label that is not 0 or 1"):
        load(tmp_path, "paws_fr")


def test_mc4_alternates_languages(tmp_path: Path) -> None:
    upstream.write_xlm_roberta(tmp_path)
    upstream.write_mc4(tmp_path, list(SHARDS))
    data = load(tmp_path, "mc4")
    words = [4 + upstream.WORDS.index(word) for word in upstream.WORDS[: len(SHARDS)]]
    assert stored(data.pretrain)[:, 1].tolist() == words * 5  # each page begins with a word of its language
    shard = tmp_path / "c4" / "multilingual" / "c4-ko.tfrecord-00000-of-00008.json.gz"
    for damaged, reason in (
        (shard.read_bytes()[:-10], r": cannot be read \(Compressed file ended.*\); fix it, or fetch it again"),
        (b"", ": it is empty; fetch it again"),
        (gzip.compress(b'{"text": "a"}\n[1]\n'), ":2: not a JSON object, and each line has to be one; fix the line"),
        (gzip.compress(b'{"text": "a"}\n{"url": "u"}\n'), ":2: a page without a text; fetch it again"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"c4-ko.*\.json\.gz{reason}$"):
            load(tmp_path, "mc4")
    shard.unlink()
    with pytest.raises(UserError, match=r"no shard c4-ko\.tfrecord"):
        load(tmp_path, "mc4")


def test_under_dabs_rows_that_lack_a_text_are_left_out(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    folder = upstream.write_glue(tmp_path, "QNLI")
    lines = (folder / "train.tsv").read_text(encoding="utf-8").split("\n")
    cells = lines[2].split("\t")
    cells[2] = ""
    lines[2] = "\t".join(cells)
    (folder / "train.tsv").write_text("\n".join(lines), encoding="utf-8")
    ours, theirs = (load(tmp_path, "qnli", protocol).require_labelled() for protocol in ("v1", "dabs"))
    assert len(theirs.train) == len(ours.train) + len(ours.validation) - 1


def test_correlations_under_dabs_are_means_over_batches(tmp_path: Path) -> None:
    upstream.write_bert_vocab(tmp_path)
    for name, metric in (("cola", "pearson/128"), ("stsb", "spearman/128")):
        upstream.write_glue(tmp_path, TABLES[name].folder)
        assert load(tmp_path, name, "dabs").require_labelled().task.metric == metric
