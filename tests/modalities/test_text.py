"""Tokenizers against transformers and plain loops; text files; own texts. All but a vocab.txt are generated."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from upstream_text import WORDS, sentence, write_bert_vocab, write_xlm_roberta

from dabsmix.data.domain import Data, Split
from dabsmix.errors import UserError
from dabsmix.modalities.text import BERT, as_int64, load_further, load_own, read_lines, read_tsv
from dabsmix.modalities.tokenizer import Tokenizer, tokenizer, train_tokenizer
from dabsmix.source import Source, load
from dabsmix.spec import Tokens


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [sentence(rng, int(rng.integers(3, 12))) for _ in range(n)]


def stored(split: Split) -> NDArray[Any]:
    return np.asarray(split.inputs[0][split.rows])


def label(split: Split) -> NDArray[Any]:
    assert split.label is not None
    return split.label


# --- tokenizers


def test_encoding_has_special_tokens_pieces_and_padding(tmp_path: Path) -> None:
    vocab = write_bert_vocab(tmp_path).read_text().split("\n")
    tokens = tokenizer(BERT, tmp_path)
    rows = tokens.encode(["River  WINTER", "a", "rivers"], 8)
    cls, sep, pad = (vocab.index(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    word = vocab.index
    assert rows.dtype == np.int32
    assert rows.tolist() == [
        [cls, word("river"), word("winter"), sep, pad, pad, pad, pad],
        [cls, word("a"), sep, *[pad] * 5],
        [cls, word("river"), word("##s"), sep, *[pad] * 4],
    ]
    assert (tokens.pad, tokens.vocab) == (pad, len(vocab) - 1)  # the file ends with a line end


@pytest.mark.parametrize("length", [6, 7, 9, 16])
def test_pairs_lose_tokens_of_the_longer_text_first(tmp_path: Path, length: int) -> None:
    write_bert_vocab(tmp_path)
    tokens = tokenizer(BERT, tmp_path)
    first, second = "red " * 5, "river " * 3

    def ids(text: str) -> list[int]:
        row = tokens.encode([text], 64)[0].tolist()
        return [token for token in row if token != tokens.pad][1:-1]

    one, two = ids(first), ids(second)
    while len(one) + len(two) > length - 3:  # one token at a time, as documented
        (one if len(one) > len(two) else two).pop()
    (cls, *_), sep = tokens.encode(["red"], 3)[0].tolist(), int(tokens.encode(["red"], 3)[0, -1])
    expected = [cls, *one, sep, *two, sep]
    expected += [tokens.pad] * (length - len(expected))
    assert tokens.encode([(first, second)], length).tolist() == [expected]


def test_real_bert_vocabulary_gives_what_transformers_gives() -> None:
    root = os.environ.get("DABSMIX_DATA")
    if not root or not (Path(root) / BERT / "vocab.txt").is_file():
        pytest.skip("no real bert-base-uncased/vocab.txt: $DABSMIX_DATA does not have it")
    from transformers import BertTokenizer

    vocab = {token: i for i, token in enumerate((Path(root) / BERT / "vocab.txt").read_text("utf-8").splitlines())}
    theirs = BertTokenizer(vocab=vocab, do_lower_case=True)
    ours = tokenizer(BERT, Path(root))
    assert (ours.vocab, ours.pad) == (30522, 0)
    first = ["Crème brûlée, please!", "unaffable <unk> @-@ 3", "日本 and naïve", "x" * 150, ""]
    second = ["It's 5°C.", "a b c d e f g h i j k l m n o p q r s t", "[MASK] me", "", "q"]
    expected = theirs(first, second, max_length=16, padding="max_length", truncation=True)["input_ids"]
    assert ours.encode(list(zip(first, second, strict=True)), 16).tolist() == expected


def test_cased_vocabulary_keeps_capitals(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "River", "river"]))
    assert tokenizer(str(file), tmp_path).encode(["River river"], 4).tolist() == [[2, 4, 5, 3]]


def test_xlm_roberta_has_its_own_special_tokens(tmp_path: Path) -> None:
    write_xlm_roberta(tmp_path)
    tokens = tokenizer("xlm-roberta-base", tmp_path)
    red, river = 4 + WORDS.index("red"), 4 + WORDS.index("river")
    assert tokens.encode([("red", "river")], 8).tolist() == [[0, red, 2, 2, river, 2, 1, 1]]
    assert (tokens.pad, tokens.vocab) == (1, 4 + len(WORDS) + 1)


def test_a_tokenizer_survives_its_state(tmp_path: Path) -> None:
    write_bert_vocab(tmp_path)
    for tokens in (tokenizer(BERT, tmp_path), train_tokenizer(texts(50), 400)):
        tokens.encode(["leaves truncation and padding behind"], 4)
        restored = Tokenizer.from_state(json.loads(json.dumps(tokens.state())))
        assert (restored.digest, restored.vocab, restored.pad, restored.name) == (
            tokens.digest,
            tokens.vocab,
            tokens.pad,
            tokens.name,
        )
        assert np.array_equal(restored.encode(texts(5), 9), tokens.encode(texts(5), 9))


def test_a_trained_tokenizer_has_its_size_and_no_unknown_text() -> None:
    tokens = train_tokenizer(texts(200), 300)
    assert tokens.vocab == 300
    rows = tokens.encode(["日本 \U0001f600"], 32)
    assert tokens.pad == 0
    assert (rows[0] != 0).sum() > 10  # every byte is a token
    with pytest.raises(UserError, match="vocab_size 100: at least 260"):
        train_tokenizer(texts(5), 100)


def test_training_gives_the_same_tokenizer_in_another_process() -> None:
    code = (
        "import numpy as np; from upstream_text import sentence; from dabsmix.modalities.tokenizer import "
        "train_tokenizer; rng = np.random.default_rng(5); "
        "print(train_tokenizer([sentence(rng, 9) for _ in range(300)], 330).digest)"
    )
    tests = Path(__file__).parents[1]
    replacements = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(tests), "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        replacements.add(run.stdout)
    assert len(replacements) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no/such-tokenizer", None, "fetch https://huggingface.co/no/such-tokenizer/resolve/main/tokenizer.json"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n", r"0 lines \[SEP\] among 3"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[SEP]", r"2 lines \[SEP\] among 5"),
    ],
)
def test_a_missing_or_damaged_tokenizer_is_one_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        tokenizer(name, tmp_path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_in_the_hub_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    snapshot = hub / "models--some--tokens" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (hub / "models--some--tokens" / "refs").mkdir()
    (hub / "models--some--tokens" / "refs" / "main").write_text("abc")
    write_xlm_roberta(tmp_path).rename(snapshot / "tokenizer.json")
    assert tokenizer("some/tokens", tmp_path / "empty").pad == 1


def test_rows_are_read_as_int64() -> None:
    (x,) = as_int64((torch.tensor([[1, 2]], dtype=torch.int32),))
    assert x.dtype == torch.int64


# --- files


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes("\ufeffone\x85\u2028still\r\ntwo\x0b\n\nlast".encode())
    assert list(read_lines(file)) == [(1, "one\x85\u2028still"), (2, "two\x0b"), (3, ""), (4, "last")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\tlabel\na\t0\nb\n", ":3: 1 cells where the table has 2"),
        (b"text\tlabel\na\t0\nb\t1\t2\n", ":3: 3 cells where the table has 2"),
        (b"text\ta\t0\n", ":1: no column 'label' among text, a, 0"),
        (b"text\tlabel\n\xff\t0\n", ":2: not UTF-8"),
    ],
)
def test_a_bad_row_of_a_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "table.tsv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_tsv(file, ["text", "label"]))


def test_quotes_and_empty_last_cells_are_part_of_a_row(tmp_path: Path) -> None:
    file = tmp_path / "table.tsv"
    file.write_text('a\tb\n"open\t \n')
    assert list(read_tsv(file, ["b", "a"])) == [(2, ["", '"open'])]


# --- a user's own texts


def write_table(path: Path, n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "author": [f"a{i % 12}" for i in range(n)],
            "body": [f'{sentence(rng)}\n"quoted", {i}' for i in range(n)],
            "kind": [("good", "bad", "none of it")[i % 3] for i in range(n)],
        }
    )
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return frame


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet"])
def test_own_table_with_labels_and_groups(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"posts.{kind}"
    frame = write_table(path)
    data = load_own(path, label="kind", column="body", group="author", vocab_size=300, length=24)
    assert data.specs == (Tokens(24, data.specs[0].vocab, 0),)  # type: ignore[union-attr]  # text has tokens
    labelled = data.require_labelled()
    assert labelled.task.classes == ("bad", "good", "none of it")
    parts = [labelled.train, labelled.validation, labelled.test]
    assert sorted(int(row) for part in parts for row in part.rows) == list(range(60))
    authors = [set(frame["author"].iloc[part.rows]) for part in parts]
    assert len(set.union(*authors)) == sum(len(group) for group in authors)  # nobody is in two parts
    for part in parts:
        assert [labelled.task.classes[code] for code in label(part)] == frame["kind"].iloc[part.rows].tolist()
    tokens = Tokenizer.from_state(data.state["tokenizer"])
    assert np.array_equal(stored(labelled.test), tokens.encode(frame["body"].iloc[labelled.test.rows].tolist(), 24))


def test_tokenizer_is_trained_on_what_pretraining_sees(tmp_path: Path) -> None:
    frame = write_table(tmp_path / "posts.csv")
    data = load_own(tmp_path / "posts.csv", label="kind", column="body", vocab_size=300)
    expected = train_tokenizer(frame["body"].iloc[data.pretrain.rows], 300)
    assert Tokenizer.from_state(data.state["tokenizer"]).digest == expected.digest


def test_the_tokenizer_option_looks_below_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bert_vocab(tmp_path / "root")
    monkeypatch.setenv("DABSMIX_DATA", str(tmp_path / "elsewhere"))
    write_table(tmp_path / "posts.csv")
    (tmp_path / "o.yaml").write_text(f"column: body\ntokenizer: {BERT}\n")
    source = Source(data=tmp_path / "posts.csv", modality="text", options=tmp_path / "o.yaml")
    with pytest.raises(UserError, match=f"tokenizer '{BERT}' is neither a file"):
        load(source)
    data = load(replace(source, data_root=tmp_path / "root"))
    assert data.state["tokenizer"]["name"] == BERT


def test_further_texts_are_read_like_training_texts(tmp_path: Path) -> None:
    write_table(tmp_path / "posts.csv")
    data = load_own(tmp_path / "posts.csv", column="body", vocab_size=300, length=24)
    assert data.labelled is None
    state = json.loads(json.dumps(data.state))
    further, keys = load_further(tmp_path / "posts.csv", state)
    assert keys[:2] == ["posts.csv:2", "posts.csv:3"]
    assert further.specs == data.specs
    assert np.array_equal(stored(further.pretrain), stored(data.pretrain))


def test_own_lines_and_folders(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(texts(9)))
    assert len(load_own(tmp_path / "lines.txt").pretrain) == 9
    for name in ("b/2.txt", "b/1.txt", "a/x.txt", "a/y.txt", "a/z.txt", "b/3.txt"):
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_text(f"text of {name}\nand more")
    data = load_own(tmp_path / "docs", label="folder", length=32)
    labelled = data.require_labelled()
    assert labelled.task.classes == ("a", "b")
    _, keys = load_further(tmp_path / "docs", data.state)
    assert keys == ["a/x.txt", "a/y.txt", "a/z.txt", "b/1.txt", "b/2.txt", "b/3.txt"]
    assert [("a", "b")[code] for code in label(labelled.train)] == [keys[row][0] for row in data.pretrain.rows]


def bad_table(tmp_path: Path) -> Path:
    path = tmp_path / "bad.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "kind"])
        writer.writerows([[text, str(i % 2)] for i, text in enumerate(texts(20))])
        writer.writerows([["", "1"], ["text", ""], ["text", "nan"], ["text"], ["a", "b", "c"], ["fine", "0"]])
    return path


def test_bad_rows_are_named_or_counted(tmp_path: Path) -> None:
    path = bad_table(tmp_path)
    with pytest.raises(UserError, match=r"bad.csv:22: no text"):
        load_own(path, label="kind")
    data = load_own(path, label="kind", on_bad="skip")
    assert "3 of 26 texts were skipped: bad.csv:22: no text; bad.csv:25: 1 cells" in data.notes[-1]
    assert "bad.csv:25: 1 cells where the table has 2 columns; bad.csv:26: 3 cells" in data.notes[-1]
    assert any(note.startswith("2 of 23 texts have no label: pretraining sees 2 of them") for note in data.notes)
    assert sum(len(part) for part in data.require_labelled().splits.values()) == 21


def give(tmp_path: Path, content: str, name: str = "t.csv", **options: Any) -> Data:
    (tmp_path / name).write_text(content)
    return load_own(tmp_path / name, **options)


def test_mistakes_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'text'; there are: words; the option `column` names another column"):
        give(tmp_path, "words\na\n")
    with pytest.raises(UserError, match=r"no column 'kind'; there are: text$"):
        give(tmp_path, "text\na\n", label="kind")
    with pytest.raises(UserError, match="all texts with a label have 'x'"):
        give(tmp_path, "text,kind\na,x\nb,x\n", label="kind")
    with pytest.raises(UserError, match="it holds no text"):
        give(tmp_path, "text\n")
    with pytest.raises(UserError, match=r"t.txt:2: no text"):
        give(tmp_path, "a\n\nb\n", "t.txt")
    with pytest.raises(UserError, match="have no column 'kind'"):
        give(tmp_path, "a\nb\n", "t.txt", label="kind")
    with pytest.raises(UserError, match="length 2: a sample has two special tokens"):
        give(tmp_path, "text\na\n", length=2)
    with pytest.raises(UserError, match="cannot be read as a table"):
        give(tmp_path, 'text\n"never closed\n')
    with pytest.raises(UserError, match="tokenizer 'no/such'"):
        give(tmp_path, "text\na\n", tokenizer="no/such")
