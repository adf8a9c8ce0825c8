"""Writes small generated files in the formats of upstream text sets. Everything here is generated, nothing is real."""

import gzip
import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WORDS = ("river", "stone", "bright", "small", "walks", "sings", "never", "always", "harbour", "winter", "quiet", "red")


def sentence(rng: np.random.Generator, length: int = 8) -> str:
    return " ".join(rng.choice(WORDS, size=length)) + " ."


def write_bert_vocab(root: Path) -> Path:
    """A WordPiece vocabulary of letters, digits and a few words."""
    file = root / "bert-base-uncased" / "vocab.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    pieces = [*string.ascii_lowercase, *string.digits, *".,'?-"]
    tokens = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *(f"##{p}" for p in pieces), *WORDS]
    file.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return file


def write_xlm_roberta(root: Path) -> Path:
    """A tokenizer.json with XLM-RoBERTa's special tokens and their order around a text and a pair."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    vocab = special | {word: 4 + i for i, word in enumerate((*WORDS, "."))}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    file = root / "xlm-roberta-base" / "tokenizer.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    inner.save(str(file))
    return file


def write_wikitext(root: Path, size: str = "2", parts: Sequence[str] = ("train", "valid", "test")) -> Path:
    """Lines with blanks around them, headings between equals signs, empty lines of one blank."""
    folder = root / f"wikitext-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(size))
    for part in parts:
        lines = [" \n", " = Heading = \n", " \n", *(f" {sentence(rng, 30)} <unk> \n" for _ in range(20)), " \n"]
        (folder / f"wiki.{part}.tokens").write_text("".join(lines), encoding="utf-8")
    return folder


GLUE_HEADERS = {
    "CoLA": "",
    "SST-2": "sentence\tlabel",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "WNLI": "index\tsentence1\tsentence2\tlabel",
}
GLUE_LABELS = {
    "QNLI": ("entailment", "not_entailment"),
    "RTE": ("entailment", "not_entailment"),
    "MNLI": ("entailment", "neutral", "contradiction"),
    "STS-B": ("5.000", "0.200", "2.75"),
}


def glue_row(folder: str, number: int, first: str, second: str, label: str) -> str:
    """One row of a GLUE file, the cells in upstream's order."""
    rows = {
        "CoLA": ("gj04", label, "" if label == "1" else "*", first),
        "SST-2": (first + " ", label),
        "MRPC": (label, str(1000 + number), str(2000 + number), first, second),
        "QQP": (str(number), "1", "2", first, second, label),
        "STS-B": (str(number), "main-news", "MSRpar", "2012", str(number), "none", "none", first, second, label),
        "MNLI": (str(number), "1", "1e", "fiction", "( )", "( )", "(ROOT )", "(ROOT )", first, second, label, label),
    }
    return "\t".join(rows.get(folder, (str(number), first, second, label)))


def write_glue(root: Path, folder: str, *, train: int = 60, dev: int = 12) -> Path:
    """One task's folder. In train every third pair shares its first text with the one before."""
    rng = np.random.default_rng(len(folder))
    labels = GLUE_LABELS.get(folder, ("0", "1"))
    devs = ("dev_matched", "dev_mismatched") if folder == "MNLI" else ("dev",)
    place = root / "glue_data" / folder
    place.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", train), *((name, dev) for name in devs)):
        lines = [GLUE_HEADERS[folder]] if GLUE_HEADERS[folder] else []
        first = sentence(rng)
        for number in range(n):
            first = first if number % 3 == 2 else sentence(rng)
            lines.append(glue_row(folder, number, first, sentence(rng), labels[number % len(labels)]))
        (place / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


def write_paws_x(root: Path, language: str, *, train: int = 40, dev: int = 10) -> Path:
    folder = root / "x-final" / language
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(ord(language[0]))
    name = "train.tsv" if language == "en" else "translated_train.tsv"
    for file, n in ((name, train), ("dev_2k.tsv", dev), ("test_2k.tsv", dev + 1)):
        rows = [f"{i}\t{sentence(rng)}\t{sentence(rng)}\t{i % 2}" for i in range(n)]
        (folder / file).write_text("\n".join(["id\tsentence1\tsentence2\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


def write_mc4(root: Path, languages: Sequence[str], *, pages: int = 5) -> Path:
    """One shard of each language, the first with one page more than the others."""
    folder = root / "c4" / "multilingual"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for place, language in enumerate(languages):
        lines = [
            json.dumps({"text": f"{WORDS[place]} {sentence(rng)}\nsecond line", "timestamp": "2019-01-01", "url": "u"})
            for _ in range(pages + (place == 0))
        ]
        with gzip.open(folder / f"c4-{language}.tfrecord-00000-of-00008.json.gz", "wt", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")
    return folder
