"""Alphabets, JSON read record by record, and a user's own sequences."""

import json
from pathlib import Path

import numpy as np
import pytest

from dabsmix.errors import UserError
from dabsmix.modalities import sequence
from dabsmix.modalities.sequence import Alphabet, load_further, load_own, records


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("symbols", ["ACGT", "TGCA", "αβγ日"])
def test_ids_are_positions_in_the_alphabet(symbols: str) -> None:
    alphabet = Alphabet("-" + symbols, pad=0)
    text = "".join(np.random.default_rng(0).choice(list(symbols), 20))
    expected = [alphabet.symbols.index(symbol) for symbol in text] + [0] * 5
    assert alphabet.encode(text, 25).tolist() == expected
    assert alphabet.encode(text, 7).tolist() == expected[:7]
    with pytest.raises(ValueError, match="symbol '!' at position 3"):
        alphabet.encode(symbols[:2] + "!", 25)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_records_are_those_of_json(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "CHUNK", chunk)
    values = [{"primary": "AC" * i, "score": [i / 3], "name": 'say "é]"'} for i in range(9)]
    path = tmp_path / "list.json"
    for text in (json.dumps(values), json.dumps(values, indent=1, ensure_ascii=False)):
        path.write_text(text, encoding="utf-8")
        assert list(records(path)) == list(enumerate(values, 1))


@pytest.mark.parametrize(
    ("text", "message"), [("[{}, {", "damaged or truncated"), ("[3]", "not an object"), ("", "damaged or truncated")]
)
def test_damaged_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UserError, match=message):
        list(records(tmp_path / "list.json"))


def fasta(path: Path, count: int = 40) -> list[str]:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACGT"), 60 + i)) for i in range(count)]
    entries = (f">read{i} kind={'ab'[i % 2]} genome=g{i // 4}\n{t[:50]}\n{t[50:]}\n" for i, t in enumerate(texts))
    path.write_text("".join(entries))
    return texts


def test_own_fasta(tmp_path: Path) -> None:
    texts = fasta(tmp_path / "reads.fasta")
    data = load_own(tmp_path / "reads.fasta", label="kind", group="genome", length=64)
    labelled = data.require_labelled()
    assert labelled.task.classes == ("a", "b")
    assert sum(map(len, labelled.splits.values())) == 40
    groups = [set(np.asarray(split.group).tolist()) for split in labelled.splits.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    row = int(labelled.test.rows[0])
    ids = labelled.test.batch(np.array([0]))[0][0]
    assert "".join(" ACGT"[code] for code in ids).rstrip() == texts[row][:64]
    further, keys = load_further(tmp_path / "reads.fasta", data.state)
    assert keys[:2] == ["read0", "read1"]
    assert further.specs == data.specs


def test_own_table_lines_and_the_alphabet(tmp_path: Path) -> None:
    texts = fasta(tmp_path / "reads.fasta")
    table = "sequence,kind\n" + "".join(f"{text},{'ab'[i % 2]}\n" for i, text in enumerate(texts))
    (tmp_path / "reads.csv").write_text(table)
    (tmp_path / "reads.txt").write_text("\n".join(texts))
    for path, label in (("reads.csv", "kind"), ("reads.txt", None)):
        data = load_own(tmp_path / path, label=label)
        assert data.state["alphabet"] == "ACGT"
        assert len(data.pretrain) == (40 if label is None else len(data.require_labelled().train))
    with pytest.raises(UserError, match="symbol 'T' is not in the alphabet"):
        load_own(tmp_path / "reads.txt", alphabet="ACG")
    (tmp_path / "odd.txt").write_text("\n".join([*texts, "ACN"]))
    data = load_own(tmp_path / "odd.txt", alphabet="ACGT", on_bad="skip")
    assert len(data.pretrain) == 40
    assert any("1 of 41 sequences was skipped" in note for note in data.notes)
    (tmp_path / "odd.txt").write_text("\n".join([*texts, "acT"]))
    masked = load_own(tmp_path / "odd.txt")
    assert "Letters that occur in lower and upper case are different symbols: a, c." in masked.notes


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_records_of_one_name_are_checked_one_by_one(order: tuple[int, int], tmp_path: Path) -> None:
    records = [">a\nACGT\n", ">a\nACGX\n"]
    path = tmp_path / "reads.fa"
    path.write_text("".join(records[number] for number in order) + ">b\nAC\n")
    data = load_own(path, alphabet="ACGT", on_bad="skip")
    assert len(data.pretrain) == 2
    assert data.state["skipped"] == ["a: symbol 'X' is not in the alphabet"]
    assert load_further(path, data.state, "skip")[1] == ["a", "b"]
    with pytest.raises(UserError, match="a: symbol 'X' is not in the alphabet"):
        load_further(path, data.state)


def test_symbols_beyond_the_length_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "reads.fa"
    path.write_text(">a\nACGTX\n>b\nACG\n")
    for alphabet in ("", "ACGT"):
        data = load_own(path, alphabet=alphabet, length=4)
        assert data.state["alphabet"] == "ACGT"
        assert load_further(path, data.state)[1] == ["a", "b"]
    with pytest.raises(UserError, match="symbol 'X' is not in the alphabet"):
        load_own(path, alphabet="ACGT", length=5)


def test_bad_fasta(tmp_path: Path) -> None:
    path = tmp_path / "reads.fa"
    path.write_text(">a kind=x\nACGT\n>b\nAC\n>c kind=y\n\n")
    with pytest.raises(UserError, match=r"has no word kind=\.\.\. in its header"):
        load_own(path, label="kind", group="kind")
    with pytest.raises(UserError, match=r"3 \(c\) is empty"):
        load_own(path)
    with pytest.raises(UserError, match=r"no header has knd=\.\.\. \(did you mean 'kind'\?\); there are: kind"):
        load_own(path, label="knd")
    path.write_text("ACGT\n")
    with pytest.raises(UserError, match="begins with a header line"):
        load_own(path)
