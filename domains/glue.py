"""GLUE (Wang et al. 2019): the ten scored tasks over English sentences and pairs, as tab-separated files.

Upstream keeps the labels of its test files, so its dev file is the test part here, as in DABS.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Data, Domain, Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import digest
from dabsmix.modalities.text import (
    BERT,
    BERT_FILE,
    HUGGING_FACE,
    Sample,
    Texts,
    identity,
    labelled,
    read_tsv,
    tokenizer,
)

ENTAILMENT = ("entailment", "not_entailment")
MNLI = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class GlueTable:
    """The columns of a task's texts and labels.

    Attributes:
        folder: upstream's name of its folder.
        texts: one column, or the two of a pair.
        label: the label's column.
        classes: names in label order, as the Hugging Face hub numbers them; none for a score.
        values: how the file writes the classes; as their names unless stated.
        metric: GLUE's own; under ``dabs`` `dabs_metric`, where that is another.
        dev: the file that holds the test part.
        header: the columns of a file that does not name them.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    metric: str = "accuracy"
    dabs_metric: str = ""
    dev: str = "dev.tsv"
    header: tuple[str, ...] = ()


BINARY = ("0", "1")
PAIR = ("sentence1", "sentence2")

TABLES = {
    "cola": GlueTable(
        *("CoLA", ("sentence",), "label", ("unacceptable", "acceptable"), BINARY, "matthews", "pearson/128"),
        header=("source", "label", "star", "sentence"),
    ),
    "sst2": GlueTable("SST-2", ("sentence",), "label", ("negative", "positive"), BINARY),
    "mrpc": GlueTable("MRPC", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), BINARY),
    "qqp": GlueTable("QQP", ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), BINARY),
    "stsb": GlueTable("STS-B", PAIR, "score", metric="spearman", dabs_metric="spearman/128"),
    "mnli_matched": GlueTable("MNLI", PAIR, "gold_label", MNLI, dev="dev_matched.tsv"),
    "mnli_mismatched": GlueTable("MNLI", PAIR, "gold_label", MNLI, dev="dev_mismatched.tsv"),
    "qnli": GlueTable("QNLI", ("question", "sentence"), "label", ENTAILMENT),
    "rte": GlueTable("RTE", PAIR, "label", ENTAILMENT),
    "wnli": GlueTable("WNLI", PAIR, "label", ("not_entailment", "entailment"), BINARY),
}

DATA = "https://dl.fbaipublicfiles.com/glue/data"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data"

ARCHIVES = {  # by folder: url, sha256
    "CoLA": (f"{DATA}/CoLA.zip", "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
    "SST-2": (f"{DATA}/SST-2.zip", "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
    "QQP": (f"{DATA}/QQP-clean.zip", "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"),
    "STS-B": (f"{DATA}/STS-B.zip", "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),
    "MNLI": (f"{DATA}/MNLI.zip", "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633"),
    "QNLI": (f"{DATA}/QNLIv2.zip", "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"),
    "RTE": (f"{DATA}/RTE.zip", "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
    "WNLI": (f"{DATA}/WNLI.zip", "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),
}


def load(name: str, folder: Path, protocol: str) -> Data:
    """One task; see `labelled` for what the protocols mean."""
    table = TABLES[name]
    tokens = tokenizer(BERT, folder.parents[1])
    if name == "mrpc" and not (folder / "train.tsv").is_file():
        files = [folder / "msr_paraphrase_train.txt", folder / "mrpc_dev_ids.tsv"]
        rows = _mrpc
    else:
        files = [folder / "train.tsv", folder / table.dev]
        rows = _rows
    metric = table.dabs_metric if protocol == "dabs" and table.dabs_metric else table.metric
    source = identity(folder, files, tokens)
    if protocol == "dabs" and len(table.texts) == 2:
        source = digest([source, "without rows that lack a text"])
    return labelled(
        name,
        source,
        tokens,
        lambda part: _texts(table, rows(table, files, part), complete=protocol == "dabs"),
        Task("classes" if table.classes else "regression", metric, table.classes),
        protocol,
        "The test part is GLUE's dev file: upstream keeps the labels of its test file.",
        phrases=name == "sst2",
    )


NumberedCells = tuple[Path, int, list[str]]


def _rows(table: GlueTable, files: list[Path], part: str) -> Iterator[NumberedCells]:
    file = files[0] if part == "train" else files[1]
    for number, cells in read_tsv(file, [*table.texts, table.label], table.header):
        yield file, number, cells


def _mrpc(table: GlueTable, files: list[Path], part: str) -> Iterator[NumberedCells]:
    """MRPC as first published: one training file, and GLUE's list of the pairs that belong to dev."""
    dev = {tuple(ids) for _, ids in read_tsv(files[1], ["one", "two"], ["one", "two"])}
    columns = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    for number, (label, one, two, *texts) in read_tsv(files[0], columns):
        if ((one, two) in dev) == (part == "test"):
            yield files[0], number, [*texts, label]


def _texts(table: GlueTable, rows: Iterator[NumberedCells], *, complete: bool) -> Texts:
    """The rows of a part; if ``complete``, as under ``dabs``, without rows that lack a text."""
    codes = {value: code for code, value in enumerate(table.values or table.classes)}
    samples: list[Sample] = []
    label: list[float] = []
    for file, number, (*texts, value) in rows:
        if not any(texts):
            raise UserError(f"{file}:{number}: no text in {' and '.join(table.texts)}; fix or remove the row")
        if complete and not all(texts):
            continue
        samples.append(texts[0] if len(texts) == 1 else (texts[0], texts[1]))
        label.append(_score(file, number, value) if not table.classes else _code(file, number, value, codes))
    return Texts(samples, np.array(label, np.int64 if table.classes else np.float32))


def _code(file: Path, number: int, value: str, codes: dict[str, int]) -> int:
    if value not in codes:
        raise UserError(f"{file}:{number}: label {value!r} is not one of {', '.join(codes)}; fix or remove the row")
    return codes[value]


def _score(file: Path, number: int, value: str) -> float:
    try:
        score = float(value)
    except ValueError:
        score = np.nan
    if not np.isfinite(score):
        raise UserError(f"{file}:{number}: score {value!r} is not a number; fix or remove the row")
    return score


def _downloads(folder: str) -> tuple[Download, ...]:
    cited = HUGGING_FACE.format("glue")
    if folder != "MRPC":
        url, sha256 = ARCHIVES[folder]
        return Download((url,), f"glue_data/{url.rpartition('/')[2]}", f"sha256:{sha256}", cited), BERT_FILE
    return (
        Download(
            (f"{SENTEVAL}/msr_paraphrase_train.txt",),
            "glue_data/MRPC/msr_paraphrase_train.txt",
            "sha256:60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
            cited,
        ),
        Download(
            (f"{DATA}/mrpc_dev_ids.tsv",),
            "glue_data/MRPC/mrpc_dev_ids.tsv",
            "sha256:971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
            cited,
        ),
        BERT_FILE,
    )


def _revisions(name: str, table: GlueTable) -> dict[str, int]:
    if name == "sst2":
        return {"v1": 1}  # since then, no validation text lies inside a training text
    return {"dabs": 1} if len(table.texts) == 2 else {}  # since then, rows that lack a text are left out


def _needs(table: GlueTable) -> tuple[str, ...]:
    if table.folder == "MRPC":
        return "train.tsv|msr_paraphrase_train.txt", f"{table.dev}|mrpc_dev_ids.tsv"
    return "train.tsv", table.dev


TITLES = {
    "cola": "CoLA: is the sentence acceptable English?",
    "sst2": "SST-2: is the film review positive?",
    "mrpc": "MRPC: do the two sentences say the same?",
    "qqp": "QQP: do the two questions ask the same?",
    "stsb": "STS-B: how alike are the two sentences, 0 to 5?",
    "mnli_matched": "MNLI: does the premise entail the hypothesis? Test on the genres of train",
    "mnli_mismatched": "MNLI: does the premise entail the hypothesis? Test on other genres",
    "qnli": "QNLI: does the sentence answer the question?",
    "rte": "RTE: does the first sentence entail the second?",
    "wnli": "WNLI: does the sentence with the pronoun resolved follow?",
}

SIZES = {
    **{"cola": "8,551 / 1,043", "sst2": "67,349 / 872", "mrpc": "3,668 / 408", "qqp": "363,846 / 40,430"},
    **{"stsb": "5,749 / 1,500", "mnli_matched": "392,702 / 9,815", "mnli_mismatched": "392,702 / 9,832"},
    **{"qnli": "104,743 / 5,463", "rte": "2,490 / 277", "wnli": "635 / 71"},
}

DOMAINS = tuple(
    Domain(
        name=name,
        modality="text",
        title=f"{TITLES[name]} (GLUE, Wang et al., 2019)",
        licence="not stated",
        folder=f"glue_data/{table.folder}",
        load=partial(load, name),
        downloads=_downloads(table.folder),
        sizes=SIZES[name],
        needs=_needs(table),
        revisions=_revisions(name, table),
        batch_size=128,
    )
    for name, table in TABLES.items()
)
